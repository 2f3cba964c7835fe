"""The step compiled ahead of time for TPUs that are not here: XLA's own memory, operations and collectives."""

import os
import re
from collections.abc import Iterator
from typing import Any

import jax

from ablax.config import RequestError
from ablax.data.corpus import Corpus
from ablax.experiment import Experiment
from ablax.inspection import program_of, steps_per_epoch, vocabulary_size
from ablax.training import session
from ablax.training.canary import with_kernel
from ablax.training.parallel import MeshEngine, build

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")


def devices_of(topology: str) -> list[Any]:
    """The devices of `v5e:16x16`, `v5p:4x4x8`, `v6e:8x8`, ..., which can be compiled for and not run on.

    Raises:
      RequestError: without libtpu, or for an unknown topology.
    """
    # Without these libtpu asks Google's metadata server which machine this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    # Compiling needs no chip, which is what libtpu locks the machine for.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise RequestError(
            f"--topology={topology} cannot be compiled for ({reason}); name one as v5e:2x4 or v5p:4x4x8, and put "
            "libtpu beside the environment: pip install --no-deps --target=DIR libtpu, then PYTHONPATH=DIR"
        ) from None
    return list(description.devices)


def engine_of(experiment: Experiment, corpus: Corpus | None, topology: str) -> MeshEngine:
    """The mesh engine that this experiment would use on a topology, its attention kernel included.

    Raises:
      RequestError: if it has no step, uses pmap, or does not fit the devices.
    """
    if hasattr(experiment.model, "fit") or experiment.parallel.engine != "mesh":
        raise RequestError(
            "--topology compiles a step over a mesh; set parallel.engine=mesh and a neural model"
        )
    experiment, _ = with_kernel(experiment, "tpu")
    vocab_size = vocabulary_size(experiment, corpus)
    program = program_of(experiment, vocab_size, steps_per_epoch(experiment, corpus))
    engine = build(experiment.parallel, program, devices_of(topology))
    assert isinstance(engine, MeshEngine)
    session.check_layout(experiment, engine.sizes)
    return engine


def compile_for(experiment: Experiment, corpus: Corpus | None, topology: str) -> dict[str, Any]:
    """What XLA says of one step on each device of a topology.

    Returns:
      `topology`, `devices`, `mesh`, `attention_kernel` of a model that has one, `fits`. If it fits: `memory` in bytes
      (`arguments`: state and batch, `temporary`, `outputs` that reuse no argument, `total`), `flops` as XLA counts them
      (the bodies of loops once), `collectives`: kind -> how many are in the program and how many bytes they give in one
      execution of each. If it does not: `why`, with the bytes that it needs and those that there are, as XLA says them.
    """
    engine = engine_of(experiment, corpus, topology)
    sizes = {axis: size for axis, size in engine.sizes.items() if size > 1}
    found = {"topology": topology, "devices": engine.mesh.size, "mesh": sizes}
    config = engine.program.module.config
    if kernel := getattr(config, "attention_kernel", None):
        found["attention_kernel"] = kernel
    lowered = engine.lower(session.root_key(0), session.hyper_of(experiment))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**found, "fits": False, "why": _shortage(str(error))}
    analysis = compiled.memory_analysis()
    memory = {
        "arguments": analysis.argument_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
    }
    return {
        **found,
        "fits": True,
        "memory": {**memory, "total": sum(memory.values())},
        "flops": compiled.cost_analysis().get("flops"),
        "collectives": collectives(compiled.as_text()),
    }


def _shortage(message: str) -> str:
    said = re.search(r"Ran out of memory.*?\.(?=\s|$)", message)
    return said[0] if said else message.strip().split("\n")[0][:300]


def collectives(program: str) -> dict[str, dict[str, int]]:
    """Kind -> `count`, and `bytes` of all results together, of the collectives in the text of a compiled program."""
    found: dict[str, dict[str, int]] = {}
    for kind, size in each_collective(program):
        entry = found.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += size
    return found


def each_collective(program: str) -> Iterator[tuple[str, int]]:
    """(kind, bytes of its largest result) of each collective in the text of a compiled program."""
    computation = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(.*\) -> (.*) \{$")
    # An asynchronous pair is counted where it starts; its result there holds the operands as well.
    operation = re.compile(rf"= (\(?[a-z]\w*\[.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
    fused = False
    for line in program.splitlines():
        if named := computation.match(line):
            # TPUs scatter sums in a fusion of an all-reduce and slices of its results.
            fused = named[1].startswith("all-reduce-scatter")
            if fused:
                yield "reduce-scatter", max(array_bytes(named[2]))
        elif not fused and (done := operation.search(line)):
            yield done[2], max(array_bytes(done[1]), default=0)


def array_bytes(shapes: str) -> list[int]:
    """Bytes of each array in an HLO shape such as `(f32[16,768]{1,0}, bf16[8]{0})`."""
    found = []
    for dtype, dims in re.findall(r"\b([a-z]+\d+|pred)(?:e\w+)?\[([\d,]*)\]", shapes):
        bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
        size = 1
        for dim in dims.split(",") if dims else ():
            size *= int(dim)
        found.append(size * bits // 8)
    return found
