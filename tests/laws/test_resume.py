"""Resume after SIGKILL = never stopped, bit for bit, batches included (on one machine with pinned cores).

A real process trains; it is killed at seeded moments in named phases; the same command is run again until it is done.
Parameters, optimizer state, random numbers and records must be those of the run that nobody disturbed.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# The child kills itself with SIGKILL when a phase has been entered often enough: no clean-up of any kind runs.
CHILD = """
import os, signal, sys
phase, count, workdir, families = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
import ablax
from ablax.experiment import base
import ablax.training.checkpoints as checkpoints
import ablax.training.parallel as parallel
import ablax.training.evaluators as evaluators

seen = 0
def deadly(function, before):
    def wrapped(*arguments, **options):
        global seen
        result = None if before else function(*arguments, **options)
        seen += 1
        if seen == count:
            print("killed in", phase, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options) if before else result
    return wrapped

if phase == "step":
    parallel.MeshEngine.step = deadly(parallel.MeshEngine.step, before=False)
if phase == "evaluation":
    evaluators.Evaluator.neural = deadly(evaluators.Evaluator.neural, before=False)
if phase == "saving":  # the background commit has begun and is not done
    checkpoints.Checkpoints.save = deadly(checkpoints.Checkpoints.save, before=False)
if phase == "before saving":
    checkpoints.Checkpoints.save = deadly(checkpoints.Checkpoints.save, before=True)

def config_of(family):
    kinds = {"decoder": {"model": "decoder"}, "lstm": {"model": "lstm"}}[family]
    config = base(**kinds, source="builtin:python_reference", tokenizer="byte")
    config.model.num_layers, config.model.width = 1, 16
    if family == "decoder":
        config.model.num_heads, config.model.residual_dropout = 2, 0.1
    else:
        config.data.layout = "streams"
    config.data.sequence_length, config.training.batch_size, config.training.steps = 16, 4, 12
    config.evaluation.every, config.evaluation.documents, config.checkpoint.every = 4, 1, 3
    config.writers.every, config.writers.tensorboard, config.training.ema_decay = 2, False, 0.9
    return config

for family in families:
    print(ablax.train(config_of(family), os.path.join(workdir, family), progress=False).finished)
"""
FAMILIES = ("decoder", "lstm")
TIMES = ("tokens_per_second",)


def run(workdir: pathlib.Path, *families: str, phase: str = "none", count: int = 0):
    """Trains each family in a folder of its name under `workdir`, in one process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "research"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", CHILD, phase, str(count), str(workdir), *families]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)


def contents(workdir: pathlib.Path):
    """Hashes of every leaf of the last checkpoint, and the records without their times."""
    last = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    manifest = workdir / "checkpoints" / str(last) / "manifest" / "metadata"
    leaves = json.loads(manifest.read_text())["leaves"]
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return last, leaves, [{k: v for k, v in r.items() if k not in TIMES} for r in records]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    done = run(workdir, *FAMILIES)
    assert done.stdout.split() == ["True"] * len(FAMILIES), done.stderr[-2000:]
    return {family: contents(workdir / family) for family in FAMILIES}


CASES = [("decoder", "step", 8), ("decoder", "saving", 2), ("lstm", "evaluation", 2)]
MORE = [
    *[("decoder", "step", n) for n in (1, 2, 5, 11, 12)],
    *[("lstm", "step", n) for n in (3, 7)],
    *[("decoder", "saving", n) for n in (1, 3, 4)],
    *[("lstm", "saving", n) for n in (1, 2)],
    *[("decoder", "before saving", n) for n in (1, 4)],
    *[("decoder", "evaluation", n) for n in (1, 3)],
]


@pytest.mark.parametrize(
    ("family", "phase", "count"),
    CASES + [pytest.param(*case, marks=pytest.mark.slow) for case in MORE],
)
def test_killed_run_goes_on_as_if_never_stopped(undisturbed, tmp_path, family, phase, count):
    """Catches a loader that starts over, a meter that forgets, a random key that is drawn anew, a record written twice,
    a carry that is not saved."""
    killed = run(tmp_path, family, phase=phase, count=count)
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert f"killed in {phase}" in killed.stdout
    resumed = run(tmp_path, family)
    assert resumed.stdout.strip() == "True", resumed.stderr[-2000:]
    expected, found = undisturbed[family], contents(tmp_path / family)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert found[2] == expected[2]
