"""Tuning: the same trials for every arm, a winner chosen on one split and measured on another with fresh seeds."""

import doctest
import json
import math

import numpy as np
import pytest
from scipy import stats

from ablax import trainer
from ablax.config import RequestError
from ablax.experiment import base
from ablax.run import RunFailed, RunFolder, write_json
from ablax.sweeps import draws
from ablax.sweeps.cells import (
    Cell,
    analysis_of,
    cells_of,
    read_plan,
    read_record,
    record_path,
    write_plan,
)
from ablax.sweeps.launch import launch
from ablax.sweeps.plan import Plan, chain, named
from ablax.sweeps.report import write
from ablax.sweeps.trials import held_cells, reopen
from ablax.sweeps.tuned import (
    Trial,
    edges,
    expected_best,
    ready,
    trials_of,
    tuned,
    tuning,
    winner,
)
from ablax.sweeps.worker import refuse

RATE = "optimizer.learning_rate"
ARMS = chain(named("gelu"), named("relu", {"model.activation": "relu"}))
PLAN = tuned(ARMS, [{RATE: rate} for rate in (1e-3, 2e-3, 4e-3)], seeds=(7, 8))


def records(**values):
    """A finished record per trial with its value, in the plan's order; winners have not started."""
    found = []
    for cell in PLAN:
        value = values.get(cell["arm"].replace(",trial ", ""), "missing")
        if isinstance(value, str):
            found.append({"status": value, "again": False})
        else:
            found.append({"status": "finished", "metrics": {"loss": value}})
    return found


def test_every_arm_has_the_same_trials_and_winners_have_fresh_seeds():
    """Catches: draws that depend on the arm, winners on the split of selection."""
    plan = tuned(ARMS, {RATE: stats.loguniform(1e-4, 1e-2)}, 4)
    assert json.loads(json.dumps(plan)) == plan
    rates = {
        arm: [c[RATE] for c in plan if c.get("trial", {}).get("of") == arm]
        for arm in ("gelu", "relu")
    }
    assert rates["gelu"] == rates["relu"]
    assert len(set(rates["gelu"])) == 4
    winners = [cell for cell in plan if "winner" in cell]
    assert [(c["arm"], c["seed"]) for c in winners] == [
        (arm, seed) for arm in ("gelu", "relu") for seed in (1, 2, 3)
    ]
    assert {cell["evaluation.split"] for cell in winners} == {"test"}
    assert {c["evaluation.split"] for c in plan if "trial" in c} == {"validation"}
    assert not any(RATE in cell for cell in winners)


def test_a_winner_waits_for_all_trials_of_its_arm():
    """Catches: a choice among the trials that were fast."""
    found = records(gelu0=3.0, gelu1=2.0, gelu2="running", relu0=3.0, relu1="failed", relu2=2.5)
    trials = trials_of(PLAN, found, "loss")
    can = {cell["arm"]: ready(cell, trials) for cell in PLAN}
    assert can.pop("gelu") is False
    assert all(can.values())
    found = [{**record, "again": True} for record in found]
    assert not ready(PLAN[-1], trials_of(PLAN, found, "loss"))  # a failed trial is tried again


def test_a_winner_that_has_begun_stays_the_winner(tmp_path):
    """Catches: a failed trial, tried again, that wins when seeds of the arm were trained with another."""
    cells = cells_of(PLAN)
    write_plan(tmp_path, cells, analysis_of(Plan(PLAN, metric="loss"), cells), "")
    plan = read_plan(tmp_path)
    found = records(gelu0=3.0, gelu1=2.0, gelu2="failed", relu0=3.0, relu1=2.0, relu2="failed")
    for cell, record in zip(cells, found, strict=True):
        if record["status"] != "missing":
            write_json(record_path(tmp_path, cell.folder), record)
    write_json(tmp_path / "gelu/seed7/config.json", {})
    write_json(tmp_path / "gelu/seed7/run.json", {})
    reopen(tmp_path, plan)
    held = held_cells(tmp_path, plan)
    arms = {cell.arm for cell in cells if cell.folder in held}
    assert arms == {"gelu,trial 0", "gelu,trial 1", "gelu,trial 2", "relu"}


def test_the_winner_is_the_same_for_everybody():
    """Catches: the largest loss, the last of equal trials, a failed or diverged trial that wins."""
    found = records(gelu0=2.0, gelu1=2.0, gelu2=math.nan, relu0="failed", relu1=3.0, relu2=2.5)
    trials = trials_of(PLAN, found, "loss")
    assert winner(trials["gelu"], "loss").draw == {RATE: 1e-3}
    assert winner(trials["relu"], "loss").draw == {RATE: 4e-3}
    backwards = trials_of(PLAN[::-1], found[::-1], "loss")
    assert backwards == trials
    accuracies = [Trial("a", i, {RATE: i}, "finished", value) for i, value in enumerate((0.1, 0.9))]
    assert winner(accuracies, "accuracy").index == 1
    with pytest.raises(RequestError, match="none of 1 trials of arm 'a' has a finite loss"):
        winner([Trial("a", 0, {}, "failed", None)], "loss")


@pytest.mark.parametrize("higher", [False, True])
def test_the_expected_best_is_that_of_draws(higher):
    """Against 20,000 draws; 4 standard errors. Catches: ranks off by one, the best of the worst end."""
    values = np.array([3.0, 1.0, 2.5, 7.0, 2.0])
    found = expected_best(values.tolist(), higher)
    drawn = np.random.default_rng(0).choice(values, (20_000, 5))
    for count in range(1, 6):
        best = drawn[:, :count].max(axis=1) if higher else drawn[:, :count].min(axis=1)
        assert abs(found[count - 1] - best.mean()) < 4 * best.std() / 20_000**0.5 + 1e-12


def test_an_optimum_at_the_edge_is_flagged():
    """Catches: every winner flagged, knobs that are no numbers."""
    trials = [
        Trial("a", i, {RATE: rate, "model.activation": name}, "finished", float(i))
        for i, (rate, name) in enumerate([(1, "relu"), (2, "gelu"), (3, "silu")])
    ]
    assert [edges(trials, trial) for trial in trials] == [[RATE], [], [RATE]]
    assert edges(trials[:2], trials[0]) == []


def test_the_report_says_what_tuning_did():
    found = records(gelu0=3.0, gelu1=2.0, gelu2=2.5, relu0="failed", relu1="failed", relu2="failed")
    told = json.loads(json.dumps(tuning(trials_of(PLAN, found, "loss"), "loss")))
    assert told["gelu"]["winner"] == {RATE: 2e-3}
    assert (told["gelu"]["edges"], told["gelu"]["failed"], told["relu"]["failed"]) == ([], 0, 3)
    assert told["gelu"]["curve"][0] == 2.5
    assert told["gelu"]["curve"][2] < 2.3
    assert "none of 3 trials" in told["relu"]["why"]


def test_senseless_tuning_is_refused():
    for arms, knobs, options, message in (
        (ARMS, [], {}, "there are no trials"),
        (ARMS, {RATE: [1, 2]}, {}, "there are no trials"),
        (ARMS, [{RATE: 1}], {"trials": 2}, "1 are listed"),
        (ARMS, [{RATE: 1}], {"seeds": (0, 1)}, "fresh seeds"),
        (ARMS, [{RATE: 1}], {"report_on": "validation"}, "another split"),
        ([{"model.bias": False}], [{RATE: 1}], {}, "has no name"),
        (named("a", {RATE: 1}), [{RATE: 1}], {}, "which tuning sets"),
    ):
        with pytest.raises(RequestError, match=message):
            tuned(arms, knobs, **options)


def sweep(folder, plan, tmp_path):
    (tmp_path / "text").mkdir(exist_ok=True)
    for index in range(30):
        (tmp_path / "text" / f"{index}.txt").write_text(f"document {index} says {index * 7} " * 9)
    config = base(model="ngram:5gram", tokenizer="byte", source=f"text:{tmp_path}/text/*.txt")
    config.data.split.validation, config.data.split.test = 0.2, 0.2
    return launch(config, plan, folder, progress=False)


def test_a_sweep_trains_the_winner_of_its_trials(tmp_path):
    """On real runs. Catches: winners that start before their trials end, the arm's own knobs in place of the winner's,
    a finished winner refused when the sweep is called again."""
    plan = tuned(named("counts"), [{"model.order": order} for order in (1, 3, 2)], seeds=(1, 2))
    plan = plan[3:] + plan[:3]  # whatever the order
    done = sweep(tmp_path / "sweep", plan, tmp_path)
    assert set(done.statuses.values()) == {"finished"}
    assert len(done.statuses) == 5
    written = read_plan(tmp_path / "sweep")
    assert (written["arms"], written["baseline"]) == (["counts"], "counts")
    records = [read_record(tmp_path / "sweep", cell["folder"]) for cell in written["cells"]]
    losses = [record["metrics"]["bits_per_byte"] for record in records]
    best = (1, 3, 2)[int(np.argmin(losses[2:]))]
    for seed in (1, 2):
        run = RunFolder(tmp_path / "sweep" / "counts" / f"seed{seed}")
        assert run.config()["model"]["order"] == best
        assert run.config()["evaluation"]["split"] == "test"
    assert {record["metrics"]["split"] for record in records[2:]} == {"validation"}
    assert set(sweep(tmp_path / "sweep", plan, tmp_path).statuses.values()) == {"skipped"}
    found = write(tmp_path / "sweep")
    assert [row["arm"] for row in found["arms"]] == ["counts"]
    assert found["arms"][0]["n"] == 2
    assert found["tuning"]["counts"]["winner"] == {"model.order": best}
    page = (tmp_path / "sweep" / "report.md").read_text()
    assert "## Tuning" in page
    assert "bits per byte on test (" in page
    assert "trial_1" not in page


def test_an_arm_without_a_winner_fails_in_one_line(tmp_path, monkeypatch):
    """Catches: a sweep that ends with a traceback, or waits for ever."""
    whole = trainer.train

    def train(config, workdir, **options):
        if "trial" in str(workdir):
            raise RunFailed("loss is nan at step 3")
        return whole(config, workdir, **options)

    monkeypatch.setattr(trainer, "train", train)
    plan = tuned(named("counts"), [{"model.order": order} for order in (1, 2)], seeds=(1,))
    done = sweep(tmp_path / "sweep", plan, tmp_path)
    assert len(done.failed) == 3
    assert "none of 2 trials" in read_record(tmp_path / "sweep", "counts/seed1")["error"]


def test_docstring_examples():
    assert doctest.testmod(draws).failed == 0


def test_a_refusal_leaves_a_result_that_another_controller_wrote(tmp_path):
    """Catches: a finished record that becomes a failed one."""
    cell = Cell("arm", 0, {}, "arm/seed0")
    write_json(record_path(tmp_path, cell.folder), {"status": "finished", "step": 3})
    assert refuse(tmp_path, cell, RequestError("late"))["status"] == "finished"
    assert read_record(tmp_path, cell.folder) == {"status": "finished", "step": 3}
