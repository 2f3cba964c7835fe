"""A sweep that looks early: no cell is run that no look wants, and the report claims what the looks allow."""

import math

import numpy as np
import pytest

from ablax import trainer
from ablax.config import RequestError
from ablax.evaluation.scores import MetricIdentity, Scores, write_scores
from ablax.experiment import base
from ablax.run import RunFolder, write_json
from ablax.sweeps import early
from ablax.sweeps.cells import is_finished, read_plan, read_record, record_path
from ablax.sweeps.launch import launch
from ablax.sweeps.look_log import read_looks
from ablax.sweeps.page import notes
from ablax.sweeps.plan import Plan, Spending, chain, named, product, seeds
from ablax.sweeps.report import report
from ablax.sweeps.sections import documents
from ablax.sweeps.statistics import paired

ARMS = chain(
    named("base"), named("far", {"model.num_layers": 2}), named("near", {"model.num_layers": 3})
)
LOOKS = Spending(at=(3, 5, 8), kind="pocock")


@pytest.fixture
def trained(monkeypatch):
    """Training that takes no time: `far` is worse than the others by much, `near` by nothing that could be told."""

    def train(experiment, workdir, *, sweep, **_):
        arm, seed = sweep["cell"]["arm"], experiment.seed
        noise = {"base": 0.0, "far": 0.002 * (seed % 3), "near": 0.05 * (-1) ** seed}[arm]
        value = 2.0 + 0.01 * seed + noise + (arm == "far")
        metrics = {"bits_per_byte": value, "split": "validation", "step": 10}
        return trainer.Run(RunFolder(workdir).path, True, 10, metrics, 1.0, 1.0, 7)

    monkeypatch.setattr(trainer, "train", train)


def run(workdir, **options):
    plan = Plan(product(ARMS, seeds(8)), looks=LOOKS)
    return launch(base(), plan, workdir, progress=False, retries=0, **options)


def test_an_arm_that_differs_stops_and_the_others_go_on(tmp_path, trained):
    """Catches: seeds that no look wants; a baseline that stops with the first arm; a decision that is not logged."""
    said = []
    done = run(tmp_path, say=said.append)
    ran = {arm: [] for arm in ("base", "far", "near")}
    for folder, status in done.statuses.items():
        if status == "finished":
            ran[folder.partition("/")[0]].append(int(folder[-1]))
        else:
            assert status == "unneeded"
    assert ran == {"base": list(range(8)), "far": [0, 1, 2], "near": list(range(8))}
    assert any("look at far after 3 seeds: different" in line for line in said)
    decisions = {(r["arm"], len(r["seeds"])): r["decision"] for r in read_looks(tmp_path)}
    assert decisions[("far", 3)] == "different"
    assert decisions[("near", 8)] == "finished"
    assert not done.failed
    assert set(run(tmp_path).statuses.values()) == {"skipped", "unneeded"}


def test_the_report_claims_what_the_looks_allow(tmp_path, trained):
    """Catches: an interval and a p of one look for an arm that was looked at three times; cells that nobody wanted
    called missing."""
    run(tmp_path)
    found = report(tmp_path)
    rows = {row["arm"]: row for row in found["arms"]}
    far = rows["far"]
    assert (far["n"], far["values"].keys()) == (3, {0, 1, 2})
    assert far["p_holm"] <= 0.05
    first = {seed: rows["base"]["values"][seed] for seed in range(3)}
    once = paired(first, far["values"])  # as if nobody would have looked again
    assert once.p is not None
    assert once.interval is not None
    assert far["p"] > once.p
    assert far["interval"][0] < once.interval[0] < once.interval[1] < far["interval"][1]
    assert rows["near"]["p_holm"] > 0.05
    said = "\n".join(notes(found))
    assert "far: different after 3 of 8 seeds" in said
    assert "spending" in said
    assert found["unfinished"] == []
    assert "changed after a look" not in said
    record = read_record(tmp_path, "near/seed0")
    record["metrics"]["bits_per_byte"] += 0.01
    write_json(record_path(tmp_path, "near/seed0"), record)
    assert "changed after a look, near at 3 seeds" in "\n".join(notes(report(tmp_path)))


def test_documents_are_compared_over_the_seeds_of_the_look(tmp_path, trained):
    """Catches: no interval over documents for an arm that stopped early, and one over seeds that it has not run."""
    run(tmp_path)
    # Another controller had begun it when the look was made.
    write_json(record_path(tmp_path, "far/seed3"), read_record(tmp_path, "far/seed0"))
    identity = MetricIdentity("likelihood", "document", 8, 8, True, True, True)
    size, names = np.arange(10.0, 16.0), tuple("abcdef")
    for cell in read_plan(tmp_path)["cells"]:
        if is_finished(tmp_path, cell["folder"]):
            bits = 2.0 + (cell["arm"] == "far") * (1.0 + cell["seed"] // 3) + cell["seed"] ** 2
            scores = Scores(bits * math.log(2) * size, size, size / 2, size, names)
            write_scores(tmp_path / cell["folder"] / "evals", "validation-10", scores, identity)
    found = report(tmp_path)
    rows = {row["arm"]: row for row in found["arms"]}
    assert (rows["far"]["these_seeds"], rows["near"]["these_seeds"]) == (3, 8)
    assert rows["far"]["these_models"] == pytest.approx((1.0, 1.0))
    assert "far, 3 seeds of both: +1.0000 to +1.0000" in documents(found)


def test_finished_records_are_read_once(tmp_path, trained, monkeypatch):
    """Catches: every record read again at every cell's end."""
    plan = run(tmp_path) and read_plan(tmp_path)
    read: list[str] = []

    def reading(sweep, folder):
        read.append(folder)
        return read_record(sweep, folder)

    monkeypatch.setattr(early, "read_record", reading)
    looking = early.Early(tmp_path, plan, LOOKS, lambda line: None)
    held = looking.held()
    assert len(read) == 24
    assert looking.held() == held
    assert read[24:] == [f"far/seed{seed}" for seed in range(3, 8)]


def test_arms_with_other_seeds_are_refused(tmp_path, trained):
    """Catches: a look over seeds that only one side has."""
    uneven = chain(product(named("one"), seeds(8)), product(named("two"), seeds(5)))
    with pytest.raises(RequestError, match="'two' has"):
        launch(base(), Plan(uneven, looks=LOOKS), tmp_path / "sweep", progress=False)
    with pytest.raises(RequestError, match="8"):
        launch(
            base(), Plan(product(ARMS, seeds(6)), looks=LOOKS), tmp_path / "sweep", progress=False
        )
    assert not (tmp_path / "sweep").exists()


def test_the_boundary_is_part_of_what_is_settled(tmp_path, trained):
    """Catches: a boundary chosen after the looks."""
    run(tmp_path)
    assert read_plan(tmp_path)["analysis"]["looks"]["rule"] == "spending"
    with pytest.raises(RequestError, match="looks="):
        launch(base(), Plan(product(ARMS, seeds(8))), tmp_path, progress=False)
