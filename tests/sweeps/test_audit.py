"""What was planned, what was run and what differs, and what the report calls exploratory."""

import json
from types import SimpleNamespace

import pytest

from ablax.config import RequestError
from ablax.run import write_json
from ablax.sweeps import page, report, sections
from ablax.sweeps.audit import flops
from ablax.sweeps.cells import record_path
from ablax.sweeps.formats import latex
from made_sweeps import make_sweep


def start(code="a" * 64, jax="0.10"):
    return {"code": {"sha256": code}, "versions": {"jax": jax}}


@pytest.fixture
def sweep(tmp_path):
    """Three arms of three seeds, as they were run: same code, libraries and analysis."""
    make_sweep(tmp_path, ("ngram", "lstm", "decoder"))
    plan = json.loads((tmp_path / "sweep.json").read_text())
    write_json(tmp_path / "sweep.json", {**plan, "analysis_sha": "f" * 64})
    for cell in plan["cells"]:
        folder = tmp_path / cell["folder"]
        write_json(folder / "config.json", {"seed": cell["seed"]})
        run = {"starts": [start()], "sweep": {"analysis_sha": "f" * 64}, "step": 500}
        write_json(folder / "run.json", run)
    return tmp_path


def edit(path, **entries):
    write_json(path, {**json.loads(path.read_text()), **entries})


def test_a_cell_of_other_code_libraries_or_analysis_is_named(sweep):
    """Catches: only the last start of a run that went on with other code."""
    assert report.report(sweep)["others"] == {}
    edit(sweep / "lstm/seed1/run.json", starts=[start("b" * 64), start()])
    edit(sweep / "lstm/seed2/run.json", starts=[start(jax="0.11")])
    edit(sweep / "decoder/seed0/run.json", sweep={"analysis_sha": "0" * 64})
    found = report.report(sweep)
    assert found["others"] == {
        "lstm/seed1": ["code bbbbbbbbbbbb, where most have aaaaaaaaaaaa"],
        "lstm/seed2": ["jax 0.11, where most have 0.10"],
        "decoder/seed0": ["analysis 000000000000, where the plan has ffffffffffff"],
    }
    assert "lstm/seed2: jax 0.11, where most have 0.10" in sections.runs(found)


def test_failed_cells_show_the_end_of_their_log(sweep):
    """Catches: missing cells that nobody counts."""
    write_json(record_path(sweep, "lstm/seed1"), {"status": "failed", "error": "boom"})
    (sweep / "lstm/seed1.log").write_text("\n".join(f"line {i}" for i in range(9)) + "\n\n")
    record_path(sweep, "decoder/seed2").unlink()
    lines = sections.runs(report.report(sweep))
    assert lines[0] == "9 cells were planned: 1 failed, 7 finished, 1 missing"
    assert lines[1:3] == ["lstm/seed1: failed: boom", "lstm/seed1, end of its log: line 4"]
    assert "decoder/seed2: missing" in lines


def test_what_the_plan_did_not_say_is_exploratory_everywhere(sweep):
    """Catches: a metric that was chosen after the results, an arm that came late."""
    found = report.report(sweep)
    assert "xploratory" not in page.markdown(found, {}) + latex(found)
    edit(sweep / "sweep.json", late={"decoder": 6})
    found = report.report(sweep)
    assert {row["arm"]: row["exploratory"] for row in found["arms"]} == {
        "ngram": False,
        "lstm": False,
        "decoder": True,
    }
    assert "| decoder (exploratory) |" in page.markdown(found, {})
    for options, said in (
        ({"metric": "accuracy"}, "metric accuracy in place of the plan's bits_per_byte"),
        ({"baseline": "lstm"}, "baseline lstm in place of the plan's ngram"),
    ):
        found = report.report(sweep, **options)
        assert page.caption(found).startswith(f"Exploratory, {said}: ")
        assert "Exploratory" in latex(found)
        assert all(row["exploratory"] for row in found["arms"])
    with pytest.raises(RequestError, match="--baseline=lst: no such arm; did you mean 'lstm'"):
        report.report(sweep, baseline="lst")


def test_repeats_are_noise_and_no_further_seeds(sweep):
    """Catches: a repeat in place of its seed; a star for a difference that repeats make as well."""
    found = report.report(sweep)
    assert all(row["star"] for row in found["arms"] if row["arm"] == "decoder")
    plan = json.loads((sweep / "sweep.json").read_text())
    cell = next(c for c in plan["cells"] if c["folder"] == "lstm/seed0")
    again = {**cell, "repeat": 1, "folder": "lstm/seed0.repeat1"}
    edit(sweep / "sweep.json", cells=[*plan["cells"], again])
    record = json.loads(record_path(sweep, "lstm/seed0").read_text())
    record["metrics"]["bits_per_byte"] += 1.0
    write_json(record_path(sweep, "lstm/seed0.repeat1"), record)
    noisy = report.report(sweep)
    assert noisy["noise"]["repeat"] == pytest.approx(0.5**0.5)
    for before, after in zip(found["arms"], noisy["arms"], strict=True):
        assert (before["mean"], before["p_holm"]) == (after["mean"], after["p_holm"])
        assert not after["star"]
    assert any("its own is no larger" in line for line in sections.noise(noisy))


def test_flops_are_those_of_all_steps(sweep):
    """Catches: those of a step, of a second, of a run of another batch size."""
    folder = sweep / "lstm/seed0"
    assert flops(folder) is None
    write_json(
        folder / "config.json", {"training": {"batch_size": 4}, "data": {"sequence_length": 8}}
    )
    rates = {"tokens_per_second": 10.0, "model_flops_per_second": 70.0}
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "split": "train", **rates}))
    assert flops(folder) == pytest.approx(7 * 4 * 8 * 500)


def test_batches_and_cost_are_those_of_the_runs_that_are_compared(sweep, monkeypatch):
    """Catches: a repeat's batches in place of its seed's; FLOPs of a run that did not finish."""
    plan = json.loads((sweep / "sweep.json").read_text())
    cell = next(c for c in plan["cells"] if c["folder"] == "lstm/seed0")
    again = {**cell, "repeat": 1, "folder": "lstm/seed0.repeat1"}
    edit(sweep / "sweep.json", cells=[*plan["cells"], again])
    edit(record_path(sweep, "lstm/seed2"), status="running")
    seen = []

    def compare(ours, theirs):
        seen.append(theirs.name)
        return SimpleNamespace(same=True)

    monkeypatch.setattr("ablax.sweeps.audit.compare_ledgers", compare)
    monkeypatch.setattr(report, "flops", lambda folder: {"seed2": 1.0}.get(folder.name, 9.0))
    row = next(row for row in report.report(sweep)["arms"] if row["arm"] == "lstm")
    assert "seed0" in seen
    assert "seed0.repeat1" not in seen
    assert row["flops"] == 9.0


def test_an_arm_without_a_number_stands_last(sweep):
    """Catches: an order of the other arms that a NaN among them upsets."""
    record = json.loads(record_path(sweep, "lstm/seed0").read_text())
    record["metrics"]["bits_per_byte"] = float("nan")
    write_json(record_path(sweep, "lstm/seed0"), record)
    arms = report.report(sweep)["arms"]
    assert arms[-1]["arm"] == "lstm"
    assert arms[0]["mean"] < arms[1]["mean"]
