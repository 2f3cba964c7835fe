"""What XLA makes of a sharded step: read from the compiled program, on CPU and for TPUs that are not here."""

import os
import pathlib
import sys

import pytest

from parallel.faked import printed

ROOT = pathlib.Path(__file__).parent.parent.parent
# Of one layer of the tiny model, float32: the feed-forward kernels [32, 128].
LAYER_BYTES = 32 * 128 * 4


def test_fsdp_gathers_layer_by_layer():
    """Catches a stack of layers that is gathered whole, and parameters that were never split."""
    found = printed("parallel.compiled_step", "decoder", "data=1", "fsdp=8", devices=8)
    gathered = [size for kind, size in found["collectives"] if kind == "all-gather"]
    assert len(gathered) > 10, "each kernel of each layer"
    assert max(gathered) <= LAYER_BYTES < found["largest"]


def test_data_parallelism_gathers_nothing():
    found = printed("parallel.compiled_step", "decoder", "data=8", devices=8)
    assert {kind for kind, _ in found["collectives"]} == {"all-reduce"}


@pytest.fixture(scope="module")
def tpu_compiler():
    """The environment of a process that can compile for TPUs."""
    folder = ROOT / ".venv" / "libtpu"
    if not folder.is_dir():
        pytest.skip("libtpu is not in .venv/libtpu; scripts/test --ci puts it there")
    paths = os.pathsep.join([*sys.path, str(folder)])
    return {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths, "XLA_FLAGS": ""}


# What XLA makes of a sum whose parts are wanted is its own choice: over all eight of a v5p it keeps the sum.
TOPOLOGIES = {"v5e:2x4": (1, 8), "v5p:2x2x2": (2, 4)}
SIZES = {
    "decoder": ["--config=experiments/pretrain/decoder.py:small", "--config.model.num_layers=2"],
    "encoder": ["--config=experiments/pretrain/encoder.py:small", "--config.model.num_layers=2"],
    "lstm": ["--config=experiments/pretrain/lstm.py:small", "--config.model.width=640"],
}


# The encoder drops attention probabilities, which splash never forms.
KERNELS = {"decoder": "splash", "encoder": "reference", "lstm": None}


@pytest.mark.ci
@pytest.mark.timeout(600)
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("family", SIZES)
def test_a_step_compiles_for_tpus(family, topology, tpu_compiler):
    """XLA's own memory and collectives of the real step. Catches a gradient that every device sums whole."""
    data, fsdp = TOPOLOGIES[topology]
    found = printed(
        *("ablax.cli", "inspect", *SIZES[family], f"--topology={topology}"),
        *(f"--config.parallel.data={data}", f"--config.parallel.fsdp={fsdp}"),
        *("--config.training.batch_size=16", "--config.data.sequence_length=128"),
        *("--config.data.tokenizer=bpe", "--config.data.tokenizer.vocab_size=1024"),
        *("--config.data.source=builtin:python_reference", "--config.training.steps=100"),
        *("--config.schedule.warmup=10", "--config.evaluation.every=0"),
        "--config.checkpoint.every=0",
        **tpu_compiler,
    )["compiled"]
    assert found["fits"]
    assert found["devices"] == 8
    assert found.get("attention_kernel") == KERNELS[family]
    assert found["memory"]["total"] < 2**34
    assert found["collectives"]["all-gather"]["count"] > 3
    scattered = found["collectives"].get("reduce-scatter", {"bytes": 0})["bytes"]
    summed = found["collectives"]["all-reduce"]["bytes"]
    if family != "lstm":
        assert scattered > 0
    assert summed < 2**26


@pytest.mark.ci
def test_a_step_that_does_not_fit_says_so(tpu_compiler):
    found = printed(
        *("ablax.cli", "inspect", *SIZES["decoder"], "--topology=v5e:2x4"),
        "--config.training.batch_size=1024",
        **tpu_compiler,
    )["compiled"]
    assert not found["fits"]
    assert "exceeds available HBM" in found["why"]


def test_what_surrounds_a_step_keeps_its_kernel_over_a_mesh(tpu_compiler):
    """Catches: a program that is traced without the mesh, for which a kernel of TPUs cannot be compiled."""
    found = printed("parallel.tpu_kernel", **tpu_compiler)
    names = ("evaluation", "forensics", "forensics of rows", "canary")
    assert found == dict.fromkeys(names, True)
