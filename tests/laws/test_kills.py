"""A run that is killed and started again = a run that never stopped, bit for bit, batches and evaluations included.

A real process trains and sends itself a signal at a seeded moment of a named phase (training/killed_run.py); the same
command is run again, and killed again, and at last left alone. On one machine with pinned cores.
"""

import json
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest

from ablax.training.meter import CLOCKED
from ablax.training.recorded import read_ledger

TESTS = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = TESTS / "training" / "killed_run.py"
ENDS = {"SIGKILL": -9, "SIGTERM": 75, "SIGINT": 130}
MOMENTS = (
    "compile",
    "mid-step",
    "accumulation",
    "saving",
    "commit",
    "evaluation",
    "epoch boundary",
)
PHASES = {  # moment -> the phases in which the signal may be sent
    "compile": {"compile"},
    "mid-step": {"step"},
    "accumulation": {"step", "data", "save", "evaluate", "end"},
    "saving": {"save"},
    "commit": {"data", "step", "evaluate", "end"},
    "evaluation": {"evaluate"},
    "epoch boundary": {"data", "step"},
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Runs the command: (page, workdir, *(signal, moment, seed)) -> exit code and what was said."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    letters = random.Random(0)
    lines = ["".join(letters.choices("abcdefgh ", k=30)) for _ in range(40)]
    text.write_text("\n".join(lines))

    environment = {**os.environ, "KILLED_TEXT": str(text), "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(TESTS.parent / "research")
    command, pipe = [sys.executable, str(SCRIPT), "--serve"], subprocess.PIPE
    server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    output = text.with_name("output")

    def run(*arguments):
        server.stdin.write(json.dumps([[*map(str, arguments)], str(output)]) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline()), output.read_text()

    yield run
    server.communicate()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, train):
    """Page -> what a run of it leaves that nobody disturbed."""
    found = {}

    def get(page):
        if page not in found:
            workdir = tmp_path_factory.mktemp(page)
            code, said = train(page, workdir)
            assert code == 0, said
            found[page] = contents(workdir)
        return found[page]

    return get


def contents(workdir):
    """Hashes of the last state's leaves, records without their times, per-document sums, hashes of the batches."""
    last = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    manifest = workdir / "checkpoints" / str(last) / "manifest" / "metadata"
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for name in CLOCKED:
            record.pop(name, None)
    scores = {p.name: json.loads(p.read_text()) for p in (workdir / "evals").glob("*.json")}
    for path in (workdir / "evals").glob("*.npz"):
        scores[path.name] = {k: v.tolist() for k, v in np.load(path).items()}
    batches = {}
    for line in (workdir / "seen.txt").read_text().splitlines():
        step, digest = line.split()
        batches.setdefault(int(step), set()).add(digest)
    return {
        "step": last,
        "state": json.loads(manifest.read_text())["leaves"],
        "records": records,
        "scores": scores,
        "batches": batches,
        "ledger": [digest.hex() for digest in read_ledger(workdir).hashes],
    }


def survive(train, undisturbed, tmp_path, page, kills, seed):
    """Kills one run again and again, then compares it; returns how many kills left half a checkpoint behind."""
    inside = 0
    for name, moment in kills:
        mark = tmp_path / "mark.json"
        mark.unlink(missing_ok=True)
        code, said = train(page, tmp_path, name, moment, seed)
        assert code == ENDS[name], f"{name} in {moment}: {said[-2000:]}"
        assert name == "SIGKILL" or moment == "compile" or ": saved at step " in said
        marked = json.loads(mark.read_text())
        assert marked["phase"] in PHASES[moment], marked
        assert bool(marked["unfinished"]) or moment not in ("saving", "commit")
        inside += any(
            "orbax-checkpoint-tmp" in p.name for p in (tmp_path / "checkpoints").iterdir()
        )
        print(f"{page} {name} in {moment}: {marked}, {inside} inside a save so far")
    code, said = train(page, tmp_path)
    assert code == 0, said
    expected, found = undisturbed(page), contents(tmp_path)
    assert found["batches"].keys() == set(range(1, expected["step"] + 1))
    for what, value in expected.items():
        assert found[what] == value, what
    return inside


QUICK = {
    "decoder": [("SIGKILL", "commit"), ("SIGTERM", "evaluation"), ("SIGINT", "saving")],
    "lstm": [("SIGKILL", "accumulation")],
}


@pytest.mark.parametrize(
    # The quick test of a carry that goes through checkpoints is in parallel/test_engines.py.
    "family",
    ["decoder", pytest.param("lstm", marks=pytest.mark.slow)],
)
def test_a_killed_run_is_as_if_never_stopped(train, undisturbed, tmp_path, family):
    """Catches: a loader that starts over, a meter that forgets, a key that is drawn anew, a record or an evaluation
    written twice or left out, a carry that is not saved, half a checkpoint taken for a whole one,
    steps that are not in the ledger although a checkpoint is after them."""
    inside = survive(train, undisturbed, tmp_path, f"{family}-30", QUICK[family], seed=0)
    assert inside >= (family == "decoder")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("family", ["decoder", "encoder", "lstm"])
def test_kill_matrix(train, undisturbed, tmp_path, family, name, seed):
    """Every signal in every phase, in a seeded order."""
    moments = random.Random(f"{family} {name} {seed}").sample(MOMENTS, len(MOMENTS))
    kills = [(name, moment) for moment in moments]
    inside = survive(train, undisturbed, tmp_path, f"{family}-90", kills, seed)
    assert inside >= (2 if name == "SIGKILL" else 0)
