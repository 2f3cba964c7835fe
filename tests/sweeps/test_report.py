"""The report: paired differences, refusals, numbers that must not be ranked together, the page and the picture."""

import json
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.run import write_json
from ablax.sweeps import page, report, sections
from ablax.sweeps.cells import cells_of, read_record, record_path
from ablax.sweeps.curves import panels
from ablax.sweeps.plan import chain, named, product, seeds
from ablax.training.ledger import Ledger
from made_sweeps import make_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def written(sweep):
    return report.write(sweep)


def test_arms_are_ranked_with_paired_differences(written):
    """Catches: differences from the best arm instead of the first one; means over unequal seeds."""
    assert [row["arm"] for row in written["arms"]] == ["decoder", "lstm", "ngram"]
    decoder, lstm, ngram = written["arms"]
    assert written["baseline"] == "ngram"
    assert ngram["difference"] is None
    assert decoder["difference"] == pytest.approx(1.95 - 2.5)
    assert decoder["interval"][0] < decoder["difference"] < decoder["interval"][1]
    assert lstm["values"] == {0: 2.1, 1: 2.3, 2: 2.12}
    assert decoder["seconds"] == pytest.approx(11.0)


def test_numbers_that_mean_something_else_stand_apart(written):
    """Catches: ranking a masked model's 1.5 as the best arm."""
    (encoder,) = written["not_comparable"]
    assert encoder["arm"] == "encoder"
    assert "pseudo-log-likelihood" in encoder["reason"]
    assert encoder["metrics"]["masked_nats_per_token"] == pytest.approx(1.5)
    assert "encoder" not in [row["arm"] for row in written["arms"]]
    (line,) = page.apart(written)
    assert line.startswith("encoder (3 seeds, 1,000 parameters, 11.0 s): nats per masked token 1.5")
    assert "Why: pseudo-log-likelihood is no likelihood" in line
    assert line in page.markdown(written, {})


def test_the_page_has_the_table_and_the_picture(sweep, written):
    page = (sweep / "report.md").read_text()
    assert "| decoder | 1.9500 | 3 | -0.5500 |" in page
    assert "ngram (baseline)" in page
    assert "![Learning curves](curves.png)" in page
    assert matplotlib.image.imread(written["picture"]).shape[0] > 400


def test_curves_are_grouped_by_what_they_measure(sweep):
    """Catches: nats of a masked model on the axis of bits per byte."""
    first, second = panels(sweep, ["encoder"])
    assert first.metric == "bits_per_byte"
    assert list(first.curves) == ["ngram", "lstm", "decoder"]
    assert [len(curves) for curves in first.curves.values()] == [3, 3, 3]
    assert second.metric == "masked_nats_per_token"


def test_missing_seeds_refuse_the_comparison(tmp_path):
    """Catches: comparing the seeds that are left."""
    make_sweep(tmp_path, ("ngram", "lstm"))
    write_json(record_path(tmp_path, "lstm/seed1"), {"status": "failed", "error": "boom"})
    found = report.report(tmp_path)
    (lstm,) = [row for row in found["arms"] if row["arm"] == "lstm"]
    assert (lstm["n"], lstm["difference"], lstm["interval"]) == (2, None, None)
    assert "seeds 1 only in the baseline" in lstm["why"]
    (one,) = found["unfinished"]
    assert (one["cell"], one["status"], one["error"]) == ("lstm/seed1", "failed", "boom")
    assert "lstm/seed1: failed: boom" in sections.runs(found)


def test_one_seed_has_no_interval(tmp_path):
    make_sweep(tmp_path, ("ngram", "lstm"), count=1)
    found = report.report(tmp_path)
    assert "one seed" in found["arms"][0]["why"]
    assert "| lstm | 2.1000 | 1 | -0.4000 | - |" in page.markdown(found, {})


def test_another_rule_of_cutting_documents_stands_apart(tmp_path):
    """Catches: ranking a sliding window over the joined text against documents from their starts."""
    make_sweep(tmp_path, ("ngram", "lstm"))
    for arm, rule in (("ngram", "document"), ("lstm", "stream")):
        for seed in range(3):
            record = read_record(tmp_path, f"{arm}/seed{seed}")
            record["metrics"] |= {"split": "validation", "step": 500}
            write_json(record_path(tmp_path, f"{arm}/seed{seed}"), record)
            identity = {"document_rule": rule, "first_token": True, "end": True}
            path = tmp_path / arm / f"seed{seed}" / "evals" / "validation-500.json"
            write_json(path, {"identity": identity})
    (lstm,) = report.report(tmp_path)["not_comparable"]
    assert "another rule than the baseline (document_rule=stream)" in lstm["reason"]


def test_a_measure_that_families_share_ranks_them_together(tmp_path):
    """Catches: a masked model that stands apart by a number that is no likelihood; other questions ranked together."""
    make_sweep(tmp_path, ("lstm", "encoder"))
    for arm in ("lstm", "encoder"):
        for seed in range(3):
            record = read_record(tmp_path, f"{arm}/seed{seed}")
            record["metrics"] |= {"probe_accuracy": 0.5, "split": "validation", "step": 500}
            write_json(record_path(tmp_path, f"{arm}/seed{seed}"), record)
            identity = {"document_rule": "document", "first_token": True, "end": False}
            path = tmp_path / arm / f"seed{seed}" / "evals" / "validation-500-probe.json"
            write_json(path, {"identity": identity | {"details": {"label": "python"}}})
    found = report.report(tmp_path, "probe_accuracy")
    assert [row["arm"] for row in found["arms"]] == ["lstm", "encoder"]
    assert report.report(tmp_path)["not_comparable"][0]["arm"] == "encoder"
    write_json(path, {"identity": identity | {"details": {"label": "brackets"}}})
    (encoder,) = report.report(tmp_path, "probe_accuracy")["not_comparable"]
    assert "another rule than the baseline (label=brackets)" in encoder["reason"]


def test_a_baseline_that_is_not_comparable_refuses_every_comparison(tmp_path):
    make_sweep(tmp_path, ("encoder", "lstm"))
    (lstm,) = report.report(tmp_path)["arms"]
    assert lstm["difference"] is None
    assert "no baseline: encoder" in lstm["why"]


def test_another_metric_may_be_asked_for(sweep, tmp_path):
    """Catches: a flag that is ignored; a table without numbers for a metric that nobody has."""
    found = report.report(sweep, "accuracy")
    assert (found["metric"], len(found["arms"])) == ("accuracy", 3)
    assert {row["mean"] for row in found["arms"]} == {0.5}
    with pytest.raises(RequestError, match="no finished cell has it; did you mean 'accuracy'"):
        report.report(sweep, "acuracy")
    make_sweep(tmp_path, ("ngram",), count=1)
    write_json(record_path(tmp_path, "ngram/seed0"), {"status": "failed", "error": "boom"})
    with pytest.raises(RequestError, match="no cell has finished"):
        report.report(tmp_path, "accuracy")


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(RequestError, match="holds no sweep"):
        report.report(tmp_path)


class Rows:
    """What a ledger asks of a loader."""

    first_row, local_batch_size, global_batch_size = 0, 2, 2

    def documents(self, step):
        return [np.array([step]), np.array([step + 1])]


def record_batches(run, value):
    rows: Any = Rows()
    with Ledger(run, rows, lambda step: step - 1, print) as ledger:
        for step in (1, 2, 3):
            ledger.write(step, {"tokens": np.full((2, 4), value + step)})


def test_arms_that_saw_other_batches_are_named(tmp_path):
    """Catches: seeds that are compared with each other, a missing ledger that passes for equal."""
    sweep = make_sweep(tmp_path, ("ngram", "lstm", "decoder"))
    assert [row["same_batches"] for row in report.report(sweep)["arms"]] == [None] * 3
    for cell in cells_of(product(chain(*map(named, ("ngram", "lstm", "decoder"))), seeds(3))):
        record_batches(sweep / cell.folder, 100 * cell.seed)
    found = report.report(sweep)
    assert {row["arm"]: row["same_batches"] for row in found["arms"]} == {
        "ngram": None,
        "lstm": True,
        "decoder": True,
    }
    assert page.caption(found).endswith("over the same batches")
    changed = next(
        c for c in json.loads((sweep / "sweep.json").read_text())["cells"] if c["arm"] == "lstm"
    )
    record_batches(sweep / changed["folder"], 7)
    found = report.report(sweep)
    assert not page.caption(found).endswith("over the same batches")
    assert [line for line in page.notes(found) if line.startswith("lstm: it did not see")]
    assert not [line for line in page.notes(found) if line.startswith("decoder: it")]
