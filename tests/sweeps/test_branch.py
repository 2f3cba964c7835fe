"""Branches of one trunk: they go on from its state, it is paid for once, and its branches are no independent seeds."""

import doctest
import json
import shutil
from typing import Any

import pytest

import ablax
from ablax import trainer
from ablax.catalog.entry import read_entry
from ablax.catalog.index import Index
from ablax.catalog.prune import Rules
from ablax.catalog.prune import plan_of as pruned
from ablax.config import RequestError
from ablax.experiment import base
from ablax.run import RunFailed, RunFolder, write_json
from ablax.sweeps import branch as module
from ablax.sweeps import branches
from ablax.sweeps.audit import flops
from ablax.sweeps.branch import branch, tangled
from ablax.sweeps.cells import (
    analysis_of,
    cells_of,
    read_plan,
    read_record,
    record_path,
    write_plan,
)
from ablax.sweeps.launch import _mates, launch
from ablax.sweeps.page import markdown
from ablax.sweeps.plan import Plan, chain, match, named, product, repeats, seeds, tuned
from ablax.sweeps.preview import preview
from ablax.sweeps.report import report
from ablax.sweeps.resolution import resolve_plan
from ablax.sweeps.trials import held_cells, reopen
from ablax.training.meter import CLOCKED

AT, STEPS = 3, 5
DECAY = {"schedule.kind": "wsd", "schedule.warmup": 1, "schedule.decay": STEPS - AT}
ARMS = chain(named("kept"), named("decayed", DECAY))
PLAN = branch({"schedule.warmup": 1}, AT, ARMS)
SHORT = PLAN[:2]


def config(text):
    made = base(source=f"text:{text}/*.txt", tokenizer="byte", schedule="constant")
    made.data.split.validation, made.data.sequence_length = 0.2, 16
    made.model.num_layers, made.model.width, made.model.num_heads = 1, 16, 2
    made.training.batch_size, made.training.steps = 4, STEPS
    made.evaluation.documents, made.evaluation.every = 1, 0
    made.checkpoint.every, made.writers.every, made.writers.tensorboard = 0, 1, False
    return made


class Killed(Exception):
    """What ends a process between two calls."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`sweep`, of a trunk and an arm that was killed when it had its folder, and `whole`, the same run in one go."""
    folder = tmp_path_factory.mktemp("branch")
    (folder / "text").mkdir()
    for index in range(30):
        (folder / "text" / f"{index}.txt").write_text(f"document {index} says {index * 7} " * 9)
    made, sweep = config(folder / "text"), folder / "sweep"
    # What a kill in the middle of an earlier fork left.
    (sweep / "kept/.seed0.12/checkpoints").mkdir(parents=True)
    whole, fork, forks = trainer.train, branches.fork, []

    def train(experiment, workdir, **options):
        if "kept" in str(workdir):
            raise Killed
        return whole(experiment, workdir, **options)

    def forked(source, *rest, **options):
        forks.append(source)
        return fork(source, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branches, "fork", forked)
        patch.setattr(trainer, "train", train)
        done = launch(made, SHORT, sweep, progress=False, retries=0)
        assert done.statuses == {"trunk/seed0": "finished", "kept/seed0": "failed"}
        assert RunFolder(sweep / "kept/seed0").status()["status"] == "forked"
        patch.setattr(trainer, "train", whole)
        done = launch(made, SHORT, sweep, progress=False, retries=0)
    assert done.statuses == {"trunk/seed0": "skipped", "kept/seed0": "finished"}
    assert forks == [f"{sweep}/trunk/seed0@{AT}"]
    overrides = {"schedule.warmup": 1}
    ablax.train(ablax.resolve(made, overrides), folder / "whole", progress=False)
    return folder


def evaluated(folder):
    """A run's last evaluation, and the hash of the parameters that it left."""
    hashes = dict(read_entry(folder, "run").hashes)
    last = [r for r in RunFolder(folder).metrics() if r["split"] != "train"][-1]
    return {k: v for k, v in last.items() if k not in CLOCKED}, hashes[f"parameters {STEPS}"]


def status_of(sweep, folder):
    return RunFolder(sweep / folder).status()


def trained(folder):
    return [r["step"] for r in RunFolder(folder).metrics() if r["split"] == "train"]


def test_an_unchanged_branch_is_the_run_that_was_never_branched(place):
    """Bit for bit. Catches: arms that start anew or from the trunk's parameters alone."""
    sweep = place / "sweep"
    assert evaluated(sweep / "kept/seed0") == evaluated(place / "whole")
    parent = RunFolder(sweep / "kept/seed0").status()["parent"]
    assert (parent["workdir"], parent["step"]) == (str(sweep / "trunk/seed0"), AT)
    assert RunFolder(sweep / "kept/seed0").status()["sweep"]["cell"]["arm"] == "kept"


def test_the_trunk_is_trained_and_counted_once(place):
    """Catches: an arm's time, speed or FLOPs with its trunk's; a trunk for each arm, or among the arms."""
    sweep = place / "sweep"
    assert trained(sweep / "trunk/seed0") == [1, 2, 3]
    assert read_record(sweep, "trunk/seed0")["steps"] == AT
    record, status = (read(sweep, "kept/seed0") for read in (read_record, status_of))
    assert (record["steps"], record["step"]) == (STEPS - AT, STEPS)
    assert record["seconds"] == status["seconds"] - status["parent"]["seconds"]
    assert 0 < status["parent"]["seconds"] <= read_record(sweep, "trunk/seed0")["seconds"]
    spent = {name: flops(sweep / name / "seed0") or 0 for name in ("trunk", "kept")}
    assert spent["trunk"] > 0
    assert spent["trunk"] / AT == pytest.approx(spent["kept"] / (STEPS - AT), rel=1e-6)
    shown = preview(config(place / "text"), SHORT, sweep)
    costs = {arm["arm"]: (arm["trunk"], arm["goes_on"], arm["tokens"]) for arm in shown["arms"]}
    assert costs == {
        "trunk": (True, None, AT * 64),
        "kept": (False, "trunk@3", (STEPS - AT) * 64),
    }
    per_token = shown["arms"][0]["flops"] / (AT * 64)
    assert shown["flops"] == pytest.approx(per_token * 64 * STEPS)
    written = read_plan(sweep)
    assert (written["arms"], written["baseline"]) == (["kept"], "kept")


def test_the_report_names_the_trunk(place):
    found = report(place / "sweep")
    assert [row["arm"] for row in found["arms"]].count("trunk") == 0
    assert found["planned"] == 2
    (told,) = found["branches"]
    assert (told["trunk"], told["steps"], told["arms"]) == ("trunk", AT, ["kept"])
    page = markdown(found, {})
    assert "kept: branches of trunk from step 3 on" in page
    assert "not independent seeds" in page
    assert "trunk: 3 steps" in page


def test_a_branch_is_forked_once_and_goes_on_after_a_kill(place):
    """The fixture's arm was killed. Catches: a second fork over a run; what a kill left in the middle of a fork, kept
    for ever."""
    assert read_record(place / "sweep", "kept/seed0")["attempts"] > 1
    assert len(RunFolder(place / "sweep/kept/seed0").status()["starts"]) == 1
    assert [p.name for p in (place / "sweep/kept").iterdir() if p.name.startswith(".")] == []


def test_what_branches_stand_on_is_not_pruned(place, tmp_path):
    """Catches: a trunk that goes before its arms have begun."""
    shutil.copytree(place / "sweep", tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "kept")
    found = pruned(Index(tmp_path).rows(), Rules(older_than=0))
    assert [(one["path"], one["kept"]) for one in found] == [("trunk/seed0", ". stands on it")]


def test_arms_of_a_trunk_that_failed_say_so(place, tmp_path, monkeypatch):
    """Catches: arms that wait for ever, start anew, or are tried before the trunk is tried once more."""

    def train(*_, **options):
        raise RunFailed("loss is nan at step 2")

    monkeypatch.setattr(trainer, "train", train)
    done = launch(config(place / "text"), PLAN, tmp_path, progress=False)
    assert done.failed == ["trunk/seed0", "kept/seed0", "decayed/seed0"]
    for arm in ("kept", "decayed"):
        record = read_record(tmp_path, f"{arm}/seed0")
        assert "its trunk trunk/seed0 is failed (loss is nan at step 2)" in record["error"]
        assert record["again"] is False
    plan = read_plan(tmp_path)
    assert held_cells(tmp_path, plan) == set()
    reopen(tmp_path, plan)
    assert held_cells(tmp_path, plan) == {"kept/seed0", "decayed/seed0"}


def trunks_of(plan):
    return {c.folder: c.links["branch"]["of"] for c in cells_of(plan) if "branch" in c.links}


def test_every_branch_finds_its_trunk():
    """Catches: seed k of an arm on another seed's trunk; two plans of branches mixed up."""
    assert trunks_of(product(PLAN, seeds(2))) == {
        "kept/seed0": "trunk/seed0",
        "decayed/seed0": "trunk/seed0",
        "kept/seed1": "trunk/seed1",
        "decayed/seed1": "trunk/seed1",
    }
    shared = branch({}, AT, product(named("kept"), seeds((4, 5))))
    assert trunks_of(shared) == {"kept/seed4": "trunk/seed0", "kept/seed5": "trunk/seed0"}
    assert trunks_of(product(branch({}, AT, named("kept")), repeats(2))) == {
        "kept/seed0": "trunk/seed0",
        "kept/seed0.repeat1": "trunk/seed0.repeat1",
    }
    sizes = chain(named("wide", {"model.width": 32}), named("narrow", {"model.width": 16}))
    assert trunks_of(product(sizes, branch({}, AT, named("kept")))) == {
        "wide,kept/seed0": "wide,trunk/seed0",
        "narrow,kept/seed0": "narrow,trunk/seed0",
    }
    two = chain(branch(named("early"), 1, named("a")), branch(named("late"), 2, named("b")))
    assert trunks_of(two) == {"a/seed0": "early/seed0", "b/seed0": "late/seed0"}
    seeded = chain(*(branch({"seed": seed}, AT, named("kept")) for seed in (0, 1)))
    assert trunks_of(seeded) == {"kept/seed0": "trunk/seed0", "kept/seed1": "trunk/seed1"}
    with pytest.raises(RequestError, match="keep the plan that branch"):
        cells_of(PLAN[1:])
    assert json.loads(json.dumps(PLAN)) == PLAN


def test_an_arm_comes_on_top_of_its_trunk():
    """Catches: fields of the trunk's schedule set on an arm's other kind, which has none such."""
    trunk = {"schedule.kind": "wsd", "schedule.decay": 0, "model.width": 32, "training.steps": 9}
    _, arm = branch(trunk, AT, named("a", {"schedule": "constant"}))
    assert arm["schedule"] == "constant"
    assert not {"schedule.kind", "schedule.decay"} & arm.keys()
    assert (arm["model.width"], arm["training.steps"]) == (32, 9)


def made_sweep(folder, plan):
    """A sweep whose cells have finished, with made-up values that differ clearly."""
    cells = cells_of(plan)
    write_plan(folder, cells, analysis_of(Plan(plan, metric="loss"), cells), "")
    for cell in cells:
        value = 2.0 + 0.001 * cell.seed**2 + (cell.arm == "decayed") * (-0.5 + 0.003 * cell.seed)
        record = {"status": "finished", "step": STEPS, "seconds": 1.0, "metrics": {"loss": value}}
        write_json(record_path(folder, cell.folder), record)
    return report(folder)


def test_branches_of_one_trunk_are_no_independent_seeds(tmp_path):
    """Catches: an interval, a p, a star or a noise of seeds from runs that share most of their training."""
    found = made_sweep(tmp_path / "shared", branch({}, AT, product(ARMS, seeds(3))))
    (row,) = [row for row in found["arms"] if row["arm"] == "decayed"]
    assert row["difference"] == pytest.approx(-0.497)
    assert (row["interval"], row["p"], row["p_holm"], row["star"]) == (None, None, None, False)
    assert "branches of one trunk and no independent seeds" in row["why"]
    assert found["noise"]["seed"] is None
    page = markdown(found, {})
    assert "decayed: mean 1.5047, 1.5000 to 1.5100, over these 3 branches of one trunk" in page
    assert "| 3 of one trunk |" in page
    found = made_sweep(tmp_path / "own", product(PLAN, seeds(3)))
    (row,) = [row for row in found["arms"] if row["arm"] == "decayed"]
    assert row["star"]
    assert found["noise"]["seed"] is not None
    assert "each seed has its own, 3 in all" in markdown(found, {})


def test_one_arm_with_a_shared_trunk_takes_none_from_the_others(tmp_path):
    """Catches: a family of tests that shrinks by the arm without one; effects told of such runs."""
    mixed = chain(product(chain(named("scratch"), named("other", {"model.width": 32})), seeds(3)))
    plan = chain(mixed, branch({}, AT, product(named("decayed", DECAY), seeds(3))))
    found = made_sweep(tmp_path, plan)
    rows = {row["arm"]: row for row in found["arms"]}
    assert tangled(read_plan(tmp_path)).keys() == {"decayed"}
    assert rows["decayed"]["p_holm"] is None
    assert rows["decayed"]["why"].startswith("decayed: its 3 runs")


def test_branches_train_by_themselves(place):
    """Catches: a branch that starts in one program with its trunk, or with runs from step 0."""
    resolved = resolve_plan(config(place / "text"), product(PLAN, seeds(2)))
    assert _mates(resolved, 4, [].append).keys() == {"trunk/seed0", "trunk/seed1"}


@pytest.mark.parametrize(
    ("trunk", "at_step", "arm", "message"),
    [
        ({}, STEPS, {}, "it branches at step 5 and ends with training.steps=5"),
        ({}, AT, {"training.steps": 3}, "it branches at step 3 and ends with training.steps=3"),
        (
            {},
            AT,
            {"data.tokenizer.kind": "character"},
            "data.tokenizer.kind cannot change in a fork",
        ),
        ({}, AT, {"init.run": "runs/a"}, "init.run cannot change in a fork"),
        ({}, AT, {"model.width": 32}, r"another \S+ than its trunk's, float32\[.*16.* -> float32"),
        ({}, AT, {"optimizer.kind": "sgd"}, "another opt_state.* change it in the trunk"),
        ({"model": "ngram"}, AT, {}, "is fitted to counts and has no steps to branch from"),
        ({"schedule.kind": "cosine"}, AT, {}, "learning rates of 'trunk' depend on how long it is"),
    ],
)
def test_what_cannot_go_on_is_refused_before_anything_runs(place, trunk, at_step, arm, message):
    plan = branch(trunk, at_step, named("bad", arm))
    with pytest.raises(RequestError, match=f"arm 'bad': .*{message}"):
        resolve_plan(config(place / "text"), plan)


def test_senseless_branches_are_refused():
    cases: list[Any] = [
        ({}, 0, ARMS, "at_step=0 must be a whole number"),
        ({}, 2.0, ARMS, "at_step=2.0 must be a whole number"),
        ({}, "5%", ARMS, "must be a whole number"),
        (seeds(2), AT, ARMS, "must be one cell, not 2"),
        ({}, AT, [], "has no arms"),
        ({}, AT, PLAN, "is made by `trunk`"),
        ({}, AT, match(ARMS, "params", "model.width"), "is made by `match`"),
    ]
    for trunk, at_step, arms, text in cases:
        with pytest.raises(RequestError, match=text):
            branch(trunk, at_step, arms)
    with pytest.raises(RequestError, match="two plans of one product set seed"):
        product(branch({}, AT, product(ARMS, seeds(2))), seeds(2))
    with pytest.raises(RequestError, match="both tuned and of a plan by `branch`"):
        cells_of(tuned(PLAN[1:], [{"model.dropout": 0.1}]))
    cells = cells_of(PLAN)
    with pytest.raises(RequestError, match="has other cells too"):
        analysis_of(Plan(PLAN, looks="any"), cells)  # type: ignore[arg-type]


def test_docstring_examples():
    assert doctest.testmod(module).failed == 0
