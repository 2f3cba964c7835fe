"""Verified resume: a run that is killed and goes on, against the same run undisturbed, with a receipt."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablax.config import RequestError, digest
from ablax.run import RunFailed, RunFolder, now, provenance, write_json
from ablax.training.meter import CLOCKED
from ablax.training.recorded import compare_ledgers, read_ledger

RECEIPT = "verify-resume.json"
POLL_SECONDS = 0.001
TAIL_BYTES = 16384
EVERY = "--config.writers.every"
"""Records tell how far a run is that is to be killed: one for every step, unless somebody wants it otherwise."""
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
"""XLA's flag for GPUs: no atomics in scatters and reductions, no choice of kernels by timing."""
NOISE = 2.0
"""How many times the difference of two undisturbed runs a resumed one may have, if programs are not deterministic."""

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How two runs ended.

    Attributes:
      leaves: path -> content hash of every array of the last checkpoint.
      records: the metrics without what the clock decides.
      speed: median tokens per second, or None.
    """

    workdir: Path
    step: int
    leaves: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    speed: float | None


def verify_resume(
    arguments: Sequence[str],
    workdir: Path | str,
    *,
    kill_step: int | None = None,
    deterministic: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Trains, trains again with a SIGKILL and a resume, compares, and writes a receipt.

    Args:
      arguments: of `ablax train`, without `--workdir`: `["--config=ablax:pretrain/decoder:tiny"]`.
      workdir: takes the runs `undisturbed` and `killed` and the receipt; must be empty or new.
      kill_step: the process is killed at this step or a little later, and not before its first checkpoint; None =
        the middle of the run.
      deterministic: on GPUs, sets what XLA needs for equal bits, and measures what it costs.
      say: takes one line of text.

    Returns:
      The receipt: `verdict` ("equal", "within noise" or "different"), `first_difference` (or None), what was killed
      and compared, hashes, environment, cores and versions.

    Raises:
      RequestError: if the folder is not empty.
      RunFailed: if a run fails, or ends before it can be killed.
    """
    folder = Path(workdir).expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} is not empty; choose another --workdir")
    folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if deterministic:
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    say("training undisturbed")
    whole = finish(arguments, folder / "undisturbed", environment)
    say(f"training again, to be killed at step {kill_step or whole.step // 2}")
    killed_at, kept = kill(arguments, folder / "killed", environment, kill_step or whole.step // 2)
    say(f"killed at step {killed_at}; going on from checkpoint {kept}")
    resumed = finish(arguments, folder / "killed", environment)
    difference, verdict, noise = first_difference(whole, resumed), "equal", None
    if difference:
        verdict = "different"
    if difference and not deterministic and _accelerated(whole):
        say("the programs are not deterministic: measuring the noise of two undisturbed runs")
        again = finish(arguments, folder / "again", environment)
        noise = largest_change(whole, again)
        verdict = "within noise" if is_noise(whole, resumed, noise) else "different"
    cost = None
    if deterministic and _accelerated(whole):
        plain = finish(arguments, folder / "plain", dict(os.environ))
        cost = plain.speed / whole.speed if plain.speed and whole.speed else None
        say(
            f"deterministic programs take {cost:.3f} of the time of others" if cost else "no speeds"
        )
    here = provenance()
    receipt = {
        "verdict": verdict,
        "first_difference": difference,
        "time": now(),
        "arguments": list(arguments),
        "steps": whole.step,
        "killed_at_step": killed_at,
        "resumed_from_step": kept,
        "deterministic": deterministic,
        "deterministic_time_ratio": cost,
        "same_seed_noise": noise,
        "hashes": {
            "state": digest(json.dumps(resumed.leaves, sort_keys=True)),
            "metrics": digest(json.dumps(resumed.records, sort_keys=True)),
            "batches": read_ledger(resumed.workdir).digest(),
        },
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "devices": RunFolder(whole.workdir).status().get("devices"),
        "versions": here["versions"],
        "code": here["code"],
        "machine": here["machine"],
        "environment": {k: v for k, v in environment.items() if k.startswith(("XLA_", "JAX_"))},
    }
    write_json(folder / RECEIPT, receipt)
    return receipt


def command(arguments: Sequence[str], workdir: Path) -> list[str]:
    """The command line of a training process."""
    words = [*arguments, f"--workdir={workdir}"]
    if not any(word.startswith(EVERY) for word in words):
        words.append(f"{EVERY}=1")
    return [sys.executable, "-m", "ablax.cli", "train", *words]


def finish(arguments: Sequence[str], workdir: Path, environment: Mapping[str, str]) -> Outcome:
    """Trains to the end in a process of its own.

    Raises:
      RunFailed: with the last line that it said.
    """
    done = subprocess.run(
        command(arguments, workdir), capture_output=True, text=True, env=dict(environment)
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RunFailed(f"training in {workdir} failed: {said[-1] if said else done.returncode}")
    return outcome(workdir)


def kill(
    arguments: Sequence[str], workdir: Path, environment: Mapping[str, str], step: int
) -> tuple[int, int]:
    """Trains and kills the process with SIGKILL once it is at `step` and has a checkpoint.

    Returns:
      The last step of which there is a record, and the newest checkpoint.

    Raises:
      RunFailed: if it ended before.
    """
    killed = False
    log = workdir.with_name(f"{workdir.name}.log")
    with log.open("w") as sink:
        process = subprocess.Popen(
            command(arguments, workdir), stdout=sink, stderr=sink, env=dict(environment)
        )
        try:
            while process.poll() is None:
                if killed := last_record(workdir) >= step and bool(steps_of(workdir)):
                    break
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
    # The kernel kills with the same signal when memory is short.
    if not killed or process.returncode != -9:
        last = (log.read_text().strip().splitlines() or [""])[-1]
        raise RunFailed(
            f"the run ended ({process.returncode}) before it could be killed at step {step} with a checkpoint; "
            f"raise training.steps or lower checkpoint.every ({last[:200]})"
        )
    return last_record(workdir), max(steps_of(workdir))


def last_record(workdir: Path) -> int:
    """The last step of training that metrics.jsonl tells, from its end; 0 = none."""
    path = RunFolder(workdir).metrics_file
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if record["split"] == "train":
                return int(record["step"])
    return 0


def steps_of(workdir: Path) -> list[int]:
    """The durable checkpoints of a run."""
    return [int(p.name) for p in RunFolder(workdir).checkpoints.glob("*") if p.name.isdigit()]


def outcome(workdir: Path) -> Outcome:
    """What is left of a finished run."""
    folder = RunFolder(workdir)
    if not steps_of(workdir):
        raise RequestError(f"{workdir} has no checkpoint: a model that is fitted is not resumed")
    step = max(steps_of(workdir))
    manifest = folder.checkpoints / str(step) / "manifest" / "metadata"
    records = list(folder.metrics())
    speeds = sorted(r["tokens_per_second"] for r in records if "tokens_per_second" in r)
    plain = [{k: v for k, v in r.items() if k not in CLOCKED} for r in records]
    leaves = json.loads(manifest.read_text())["leaves"]
    return Outcome(workdir, step, leaves, plain, speeds[len(speeds) // 2] if speeds else None)


def first_difference(one: Outcome, other: Outcome) -> str | None:
    """What differs first: batches, then records, then the leaves of the state in their order; None if nothing does."""
    batches = compare_ledgers(one.workdir, other.workdir)
    if not batches.same:
        return f"the batch of step {batches.parts_at}"
    for a, b in zip(one.records, other.records, strict=False):
        if a != b:
            names = [name for name in a if a[name] != b.get(name)] or [n for n in b if n not in a]
            return f"{names[0]} of the {a['split']} record of step {a['step']}"
    if len(one.records) != len(other.records):
        return f"{len(one.records)} records against {len(other.records)}"
    if one.step != other.step:
        return f"step {one.step} against {other.step}"
    for path in [*one.leaves, *other.leaves]:
        if one.leaves.get(path) != other.leaves.get(path):
            return f"the leaf {path} of the state"
    return None


def largest_change(one: Outcome, other: Outcome) -> dict[str, float]:
    """Record's metric -> largest absolute difference between two runs."""
    found: dict[str, float] = {}
    for a, b in zip(one.records, other.records, strict=True):
        for name, value in a.items():
            if isinstance(value, float):
                path = f"{a['split']}/{name}"
                found[path] = max(found.get(path, 0.0), abs(value - b[name]))
    return found


def is_noise(one: Outcome, other: Outcome, noise: Mapping[str, float]) -> bool:
    """Whether two runs saw the same batches and differ no more than `NOISE` times what two undisturbed ones do.

    Args:
      noise: see `largest_change`.
    """
    same = compare_ledgers(one.workdir, other.workdir).same
    if not same or [r.keys() for r in one.records] != [r.keys() for r in other.records]:
        return False
    apart = largest_change(one, other)
    return all(apart[path] <= NOISE * largest for path, largest in noise.items())


def _accelerated(run: Outcome) -> bool:
    return RunFolder(run.workdir).status().get("devices", {}).get("platform", "cpu") != "cpu"
