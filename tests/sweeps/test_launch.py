"""A sweep's cells: validated first, run one after another, skipped when finished, recorded when they fail."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ablax import trainer
from ablax.config import RequestError
from ablax.experiment import base
from ablax.run import Preempted, RunFailed
from ablax.sweeps.cells import read_plan, read_record
from ablax.sweeps.launch import launch
from ablax.sweeps.plan import chain, named, product, seeds


@dataclasses.dataclass
class FakeRun:
    workdir: Path
    finished: bool = True
    step: int = 10
    metrics: dict[str, Any] = dataclasses.field(default_factory=lambda: {"bits_per_byte": 2.0})
    seconds: float = 1.0
    tokens_per_second: float = 100.0
    parameters: int = 7


@pytest.fixture
def trained(monkeypatch):
    """Replaces training; the cells' folders in the order in which they ran."""
    ran: list[str] = []

    def train(config, workdir, *, extend=(), offline=False, progress=True, say=None, **_):
        workdir = Path(workdir)
        ran.append(f"{workdir.parent.name}/{workdir.name}")
        assert config.seed == int(workdir.name.removeprefix("seed"))
        return FakeRun(workdir)

    monkeypatch.setattr(trainer, "train", train)
    return ran


PLAN = product(chain(named("one"), named("two", {"model.num_layers": 2})), seeds(2))


def run(workdir, plan=PLAN, **options):
    return launch(base(), plan, workdir, progress=False, **{"retries": 0, **options})


def test_cells_run_in_order_and_finished_ones_are_skipped(tmp_path, trained):
    """Every arm's first seed comes before any second one. Catches: running finished cells again."""
    done = run(tmp_path)
    assert trained == ["one/seed0", "two/seed0", "one/seed1", "two/seed1"]
    assert set(done.statuses.values()) == {"finished"}
    assert read_record(tmp_path, "two/seed1")["metrics"] == {"bits_per_byte": 2.0}
    again = run(tmp_path)
    assert len(trained) == 4
    assert set(again.statuses.values()) == {"skipped"}


def test_a_refused_arm_stops_the_sweep_before_it_starts(tmp_path, trained):
    """Catches: validating each cell only when its turn comes."""
    plan = chain(PLAN, named("bad", {"model.num_heads": 7}))
    with pytest.raises(RequestError, match=r"arm 'bad'.*num_heads"):
        run(tmp_path / "sweep", plan)
    assert trained == []
    assert not (tmp_path / "sweep").exists()


def test_a_failing_cell_is_recorded_and_the_others_go_on(tmp_path, trained, monkeypatch):
    """Catches: one exception ending the sweep; a failed cell being skipped for ever."""
    whole = trainer.train

    def train(config, workdir, **options):
        run = whole(config, workdir, **options)
        if "one/seed1" in str(workdir):
            raise RuntimeError("loss is nan at step 3")
        return run

    monkeypatch.setattr(trainer, "train", train)
    done = run(tmp_path)
    assert done.failed == ["one/seed1"]
    assert len(trained) == 4
    record = read_record(tmp_path, "one/seed1")
    assert record["status"] == "failed"
    assert "loss is nan at step 3" in record["error"]
    monkeypatch.setattr(trainer, "train", whole)
    assert run(tmp_path).statuses["one/seed1"] == "finished"
    assert trained[4:] == ["one/seed1"]


def test_preemption_leaves_the_cell_to_be_resumed(tmp_path, trained, monkeypatch):
    """Catches: recording a preempted cell as failed and going on."""
    whole = trainer.train

    def preempt(config, workdir, **options):
        raise Preempted("SIGTERM: saved at step 3 of 10")

    monkeypatch.setattr(trainer, "train", preempt)
    with pytest.raises(Preempted):
        run(tmp_path)
    assert read_record(tmp_path, "one/seed0")["status"] == "running"
    monkeypatch.setattr(trainer, "train", whole)
    assert set(run(tmp_path).statuses.values()) == {"finished"}


def test_a_signal_between_two_cells_is_preemption(tmp_path, trained, monkeypatch):
    """Catches: a process that SIGTERM kills where no run is there to catch it."""
    whole = trainer.train

    def train(config, workdir, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(config, workdir, **options)

    monkeypatch.setattr(trainer, "train", train)
    with pytest.raises(Preempted, match="run the same command"):
        run(tmp_path)
    assert trained == ["one/seed0"]
    monkeypatch.setattr(trainer, "train", whole)
    assert sorted(run(tmp_path).statuses.values()) == ["finished"] * 3 + ["skipped"]


def test_a_failure_that_may_pass_is_tried_again_within_the_budget(tmp_path, trained, monkeypatch):
    """Catches: a cell given up at its first accident, tried for ever, or tried again when it will fail alike."""
    whole, failures = trainer.train, {"one/seed0": 2, "two/seed1": 9}

    def train(config, workdir, **options):
        cell = f"{workdir.parent.name}/{workdir.name}"
        trained.append(cell)
        if failures.get(cell):
            failures[cell] -= 1
            raise OSError("no space left on device")
        if cell == "one/seed1":
            raise RunFailed("loss is nan at step 3")
        return whole(config, workdir, **options)

    monkeypatch.setattr(trainer, "train", train)
    done = run(tmp_path, retries=2)
    assert done.failed == ["one/seed1", "two/seed1"]
    assert trained.count("one/seed0") == 3 + 1  # the last of them went on to the fixture's
    assert trained.count("one/seed1") == 1
    assert trained.count("two/seed1") == 3
    assert read_record(tmp_path, "two/seed1")["error"] == "no space left on device"
    assert read_record(tmp_path, "one/seed0")["attempts"] == 3


def test_a_plan_may_grow_but_not_change(tmp_path, trained):
    """Catches: mixing the cells of two plans in one folder."""
    run(tmp_path)
    more = chain(PLAN, product(named("three", {"model.num_layers": 3}), seeds(2)))
    assert len(run(tmp_path, more).statuses) == 6
    assert read_plan(tmp_path)["arms"] == ["one", "two", "three"]
    with pytest.raises(RequestError, match=r"cell three/seed0 of it changed or is gone"):
        run(tmp_path)
    with pytest.raises(RequestError, match=r"has metric='bits_per_byte' in its plan"):
        run(tmp_path, more, metric="nats_per_token")


def test_a_metric_that_no_arm_reports_is_refused_before_anything_is_written(tmp_path, trained):
    """Catches: all cells trained for a report without a single number."""
    with pytest.raises(RequestError, match="no arm reports it; did you mean 'bits_per_byte'"):
        run(tmp_path / "sweep", metric="bits_per_bite")
    masked = chain(named("one"), named("two", {"model": "encoder", "objective": "masked"}))
    with pytest.raises(RequestError, match=r"there are: bits_per_byte, .*, pseudo_token_accuracy"):
        run(tmp_path / "sweep", masked, metric="rouge")
    assert not (tmp_path / "sweep").exists()
    assert trained == []
    assert len(run(tmp_path / "sweep", masked, metric="masked_accuracy").statuses) == 2


def test_the_plan_is_written_whole(tmp_path, trained):
    run(tmp_path, name="page.py:tiny")
    plan = json.loads((tmp_path / "sweep.json").read_text())
    assert plan["baseline"] == "one"
    assert plan["metric"] == "bits_per_byte"
    assert plan["experiment"] == "page.py:tiny"
    assert [cell["folder"] for cell in plan["cells"]][:2] == ["one/seed0", "one/seed1"]
