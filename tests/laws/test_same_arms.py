"""Arms that are the same: a sweep of real runs finds nothing between them."""

import dataclasses

import pytest

from ablax.run import write_json
from ablax.sweeps import report
from ablax.sweeps.cells import cells_of, record_path
from ablax.sweeps.plan import chain, named, product, seeds
from test_trainer import train

SEEDS = 5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_arms_that_differ_by_chance_alone_are_not_told_apart(tmp_path):
    """Each arm draws its own weights and batches. Catches: stars for noise, a floor of 0 for trained models."""
    arms = ("first", "second", "third")
    cells = cells_of(product(chain(*map(named, arms)), seeds(SEEDS)))
    plan = {"experiment": "", "metric": "bits_per_byte", "baseline": arms[0], "arms": list(arms)}
    write_json(
        tmp_path / "sweep.json", {**plan, "cells": [dataclasses.asdict(cell) for cell in cells]}
    )
    for cell in cells:
        own = 1000 * arms.index(cell.arm) + cell.seed
        changes = {"seed": own, "training__steps": 30, "evaluation__documents": None}
        run = train(tmp_path / cell.folder, **changes, evaluation__every="0%")
        record = {"status": "finished", "metrics": run.metrics, "seconds": run.seconds}
        write_json(record_path(tmp_path, cell.folder), {**record, "parameters": run.parameters})
    found = report.write(tmp_path)
    assert len(found["arms"]) == 3
    assert len({value for row in found["arms"] for value in row["values"].values()}) == 3 * SEEDS
    assert not any(row["star"] for row in found["arms"])
    assert all(row["p_holm"] > 0.05 for row in found["arms"] if row["arm"] != "first")
    assert all(row["floor"] > 0 for row in found["arms"] if row["arm"] != "first")
    assert all(row["flops"] > 0 for row in found["arms"])
