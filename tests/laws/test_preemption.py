"""A wish to stop while a run compiles or evaluates: what is saved, and what the next start makes up for."""

import os
import signal

import pytest

from ablax.run import Preempted, RunFolder
from ablax.training.evaluators import Evaluator
from ablax.training.phases import Phases
from test_trainer import records_of, steps_of, train

SIZES = {"evaluation__batch_rows": 1, "training__steps": 4, "checkpoint__every": 4}


@pytest.fixture
def scored(monkeypatch):
    """The batches that are scored; a number under "stop" sends SIGUSR1 before the batch of that number, from 1."""
    seen, put = {"batches": 0, "stop": 0}, Evaluator._put

    def putting(self, batch):
        if seen["batches"] + 1 == seen["stop"]:
            os.kill(os.getpid(), signal.SIGUSR1)
        batch = put(self, batch)
        seen["batches"] += 1
        return batch

    monkeypatch.setattr(Evaluator, "_put", putting)
    return seen


def test_an_evaluation_is_broken_off_and_made_up_for(scored, tmp_path):
    """After the last step, when only that is left. Catches: a grace time spent on an evaluation; a record that is
    missing for ever; a run that is called finished without it."""
    train(tmp_path / "undisturbed", **SIZES)
    each = scored["batches"] // 2
    assert each > 3  # there is something to break off
    workdir, scored["batches"], scored["stop"] = tmp_path / "stopped", 0, each + 2
    with pytest.raises(Preempted, match="SIGUSR1: saved at step 4 of 4"):
        train(workdir, **SIZES)
    assert scored["batches"] == each + 1
    assert [r["step"] for r in records_of(workdir) if r["split"] != "train"] == [2]
    scored["stop"] = 0
    assert train(workdir, **SIZES).finished
    assert records_of(workdir) == records_of(tmp_path / "undisturbed")


def test_before_the_first_step_there_is_nothing_to_save(tmp_path, monkeypatch):
    """Catches: compiling to the end, to save a state that one step made."""
    enter = Phases.enter

    def entering(self, name, step):
        enter(self, name, step)
        if name == "compile":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Phases, "enter", entering)
    with pytest.raises(Preempted, match=r"SIGTERM in compile at step 1: nothing new to save"):
        train(tmp_path)
    assert steps_of(tmp_path) == []
    assert RunFolder(tmp_path).status()["status"] == "interrupted"
