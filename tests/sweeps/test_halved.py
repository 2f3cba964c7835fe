"""A sweep that halves its trials: who is behind stops, the winner is trained anew, and every decision is in the log."""

import json
import math

import pytest

from ablax import trainer
from ablax.config import RequestError
from ablax.experiment import base
from ablax.run import Paused, RunFailed, RunFolder, write_json
from ablax.sweeps.cells import read_plan, record_path
from ablax.sweeps.halved import decide, halving_of
from ablax.sweeps.launch import launch
from ablax.sweeps.look_log import read_looks
from ablax.sweeps.plan import Halving, Plan, Spending, named, product, seeds, tuned
from ablax.sweeps.report import write
from ablax.sweeps.trials import held_cells, trials_in
from ablax.sweeps.worker import cell_named, experiment_of, run_cell

RATE = "optimizer.learning_rate"
RULE = Halving((10, 30))
RATES = [1e-3 * rate for rate in (5, 2, 9, 4, 1, 7, 3, 8, 6)]

FAILS, NO_VALUE = 13.0, 14.0


def plan_of(rates=RATES, halving: Halving | None = RULE, **more):
    cells = tuned(named("gelu"), [{RATE: rate} for rate in rates], seeds=(1, 2))
    return Plan(cells, halving=halving, **more)


@pytest.fixture
def ran(monkeypatch):
    """Training that takes no time: (trial, step to which it went) of each start.

    The lower the rate, the lower the loss; at the second rung the order is reversed.
    """
    found: list = []

    def train(experiment, workdir, *, sweep, until=None, **_):
        arm, rate = sweep["cell"]["arm"], experiment.optimizer.learning_rate
        found.append((arm.rpartition(" ")[2], until))
        if rate == FAILS:
            raise RunFailed("loss is nan at step 3")
        value = math.nan if rate == NO_VALUE else 2.0 + (-rate if until == 30 else rate)
        record = {"step": until or 100, "split": experiment.evaluation.split}
        folder = RunFolder(workdir)
        folder.path.mkdir(parents=True, exist_ok=True)
        with (folder.path / "metrics.jsonl").open("a") as lines:
            lines.write(json.dumps({**record, "bits_per_byte": value}) + "\n")
        if until:
            raise Paused(f"paused at step {until} of 100")
        return trainer.Run(folder.path, True, 100, {"bits_per_byte": value}, 1.0, 1.0, 7)

    monkeypatch.setattr(trainer, "train", train)
    return found


def run(folder, plan=None, **options):
    config = base()
    config.training.steps = 100
    return launch(config, plan or plan_of(), folder, progress=False, retries=0, **options)


def test_who_is_behind_stops_and_the_winner_is_trained_anew(tmp_path, ran):
    """Catches: a trial that goes on although it was not promoted, all trials trained to the end, a winner that waits
    for trials that stopped or was not chosen among those that finished, decisions that are not logged."""
    said: list[str] = []
    done = run(tmp_path, say=said.append)
    assert [trial for trial, until in ran if until == 10] == list("012345678")
    assert {trial for trial, until in ran if until == 30} == {
        "4",
        "1",
        "6",
    }  # the lowest three rates
    assert [trial for trial, until in ran if until is None] == ["6", "gelu", "gelu"]
    assert sorted(done.statuses.values()) == ["finished"] * 3 + ["unneeded"] * 8
    log = {(r["arm"], r["rung"], r["decision"]) for r in read_looks(tmp_path)}
    assert ("gelu,trial 6", 30, "promote") in log
    assert ("gelu,trial 4", 30, "stop") in log
    assert len([one for one in log if one[1:] == (10, "stop")]) == 6
    assert any("gelu,trial 2 at step 10: stop (place" in line for line in said)
    count, lines = len(ran), len(read_looks(tmp_path))
    again = run(tmp_path)
    assert set(again.statuses.values()) == {"skipped", "unneeded"}
    assert (len(ran), len(read_looks(tmp_path))) == (count, lines)
    found = write(tmp_path)
    assert [row["arm"] for row in found["arms"]] == ["gelu"]
    told = found["tuning"]["gelu"]
    assert (told["winner"], told["failed"], told["curve"]) == ({RATE: RATES[6]}, 0, [])
    stopped = {
        one["trial"]: (one["rung"], one["place"], one["reported"]) for one in told["stopped"]
    }
    assert stopped.keys() == {0, 1, 2, 3, 4, 5, 7, 8}
    assert (stopped[2], stopped[4]) == ((10, 9, 9), (30, 3, 3))
    page = (tmp_path / "report.md").read_text()
    assert "trial 2 at step 10 (place 9 of 9)" in page
    assert "a selection and not a test" in page


def test_a_worker_starts_nobody_who_was_not_promoted(tmp_path, ran):
    """Another controller may not have seen that a trial has paused. Catches: it trains to the next rung."""
    run(tmp_path)
    plan, count = read_plan(tmp_path), len(ran)
    folder = next(c["folder"] for c in plan["cells"] if c["arm"] == "gelu,trial 2")
    record = run_cell(tmp_path, cell_named(plan, folder), base())
    assert record["status"] == "paused", record.get("error")
    assert record["rungs"] == {"10": pytest.approx(2.009)}
    assert len(ran) == count


def test_the_records_and_the_log_decide(tmp_path, ran, monkeypatch):
    """As several workers leave them. Catches: a promotion while trials wait for their first start; all awaited; a
    promotion that is taken back; a failed trial that leaves the arm without a winner."""
    monkeypatch.setattr("ablax.sweeps.launch.Controller.run", lambda *_: None)
    run(tmp_path, plan_of(halving=Halving((10,))))
    plan = read_plan(tmp_path)
    rule = halving_of(plan)
    assert rule is not None
    folders = [cell["folder"] for cell in plan["cells"] if "trial" in cell["links"]]

    def put(index, status, value=None):
        rungs = {} if value is None else {"rungs": {"10": value}}
        write_json(record_path(tmp_path, folders[index]), {"status": status, **rungs})

    def promoted():
        decide(tmp_path, plan, rule, lambda line: None)
        return [int(r["arm"][-1]) for r in read_looks(tmp_path) if r["decision"] == "promote"]

    for index in range(6):
        put(index, "paused", 1.0 + index)
    assert promoted() == []
    for index in (6, 7, 8):
        put(index, "running")
    assert promoted() == [0, 1]  # two of six, and nobody waits for the other three
    assert set(folders[2:6]) <= held_cells(tmp_path, plan)
    assert not held_cells(tmp_path, plan) & set(folders[:2])
    for index in (6, 7, 8):
        put(index, "paused", 0.1 * index)
    assert promoted() == [0, 1, 6, 7, 8]
    for index in (0, 1, 6, 7, 8):
        assert trials_in(tmp_path, plan)["gelu"][index].status == "running"
        write_json(record_path(tmp_path, folders[index]), {"status": "failed", "again": False})
    assert promoted() == [0, 1, 6, 7, 8, 2]
    assert plan["cells"][-1]["folder"] in held_cells(tmp_path, plan)
    put(2, "finished", 1.0)
    assert plan["cells"][-1]["folder"] not in held_cells(tmp_path, plan)


def test_a_trial_without_a_value_stops(tmp_path, ran):
    """Catches: a diverged trial that is the best by its nan, or is awaited for ever."""
    run(tmp_path, plan_of(rates=[1e-3, FAILS, NO_VALUE], halving=Halving((10,))))
    statuses = [trial.status for trial in trials_in(tmp_path, read_plan(tmp_path))["gelu"]]
    assert statuses == ["finished", "failed", "stopped"]


def test_it_is_part_of_what_is_settled(tmp_path, ran):
    """Catches: rungs chosen after results, also by a plan that had none; another hash of plans that have none."""
    run(tmp_path / "halved")
    assert read_plan(tmp_path / "halved")["analysis"]["halving"] == {"rungs": [10, 30], "factor": 3}
    with pytest.raises(RequestError, match="has halving="):
        run(tmp_path / "halved", plan_of(halving=None))
    run(tmp_path / "whole", plan_of(rates=[1e-3], halving=None))
    assert "halving" not in read_plan(tmp_path / "whole")["analysis"]
    with pytest.raises(RequestError, match="has halving=None in its plan"):
        run(tmp_path / "whole", plan_of(rates=[1e-3]))


@pytest.mark.parametrize(
    ("plan", "changes", "message"),
    [
        (Plan(product(named("a"), seeds(3)), halving=RULE), {}, "the plan has none"),
        (plan_of(looks=Spending(at=(2,))), {}, "looks and halving"),
        (plan_of(), {"training.steps": 30}, "trains for 30 steps"),
        (plan_of(), {"training.steps": "2 epochs"}, "only the data tell"),
        (
            Plan(tuned(named("a"), [{"model.order": 2}]), halving=RULE),
            {"model": "ngram:5gram"},
            "fitted to counts",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, ran, plan, changes, message):
    config = base(model=changes.get("model", "decoder"))
    config.training.steps = changes.get("training.steps", 100)
    with pytest.raises(RequestError, match=message):
        launch(config, plan, tmp_path / "sweep", progress=False)
    assert not (tmp_path / "sweep").exists()


def test_a_real_run_pauses_at_its_rung(tmp_path, monkeypatch):
    """Catches: a value at the rung that is not the plan's metric there, or none because only the end measures it; a
    cell that fails because it has paused."""
    (tmp_path / "text").mkdir()
    for index in range(20):
        (tmp_path / "text" / f"{index}.txt").write_text(
            f"document ({index}) says [{index * 7}] " * 9
        )
    config = base(model="decoder:tiny", tokenizer="byte", source=f"text:{tmp_path}/text/*.txt")
    config.model.num_layers, config.model.width, config.model.num_heads = 1, 16, 2
    config.data.sequence_length, config.training.batch_size, config.training.steps = 16, 4, 100
    config.data.split.validation, config.data.split.test = 0.2, 0.2
    config.evaluation.every, config.evaluation.documents, config.evaluation.choices = 0, 2, 6
    config.writers.tensorboard = False
    with monkeypatch.context() as patch:
        patch.setattr("ablax.sweeps.launch.Controller.run", lambda *_: None)
        chosen = plan_of(metric="choice_accuracy")  # which is measured at a run's end alone
        launch(config, chosen, tmp_path / "sweep", progress=False)
    plan = read_plan(tmp_path / "sweep")
    cell = cell_named(plan, plan["cells"][0]["folder"])
    experiment = experiment_of(tmp_path / "sweep", plan, cell)
    record = run_cell(tmp_path / "sweep", cell, experiment, progress=False)
    assert record["status"] == "paused", record.get("error")
    folder = RunFolder(tmp_path / "sweep" / cell.folder)
    (measured,) = [one for one in folder.metrics() if one["split"] == "validation"]
    assert record["rungs"] == {"10": measured["choice_accuracy"]}
    assert (measured["step"], folder.status()["status"]) == (10, "paused")
