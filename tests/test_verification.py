"""Verified resume: real processes, a real SIGKILL, a receipt; and what it says when something differs."""

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np
import pytest

from ablax import cli
from ablax.run import RunFailed
from ablax.training.ledger import Ledger
from ablax.verification import (
    RECEIPT,
    Outcome,
    first_difference,
    largest_change,
    verify_resume,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = """
from ablax.experiment import base

def get_config():
    config = base(source="builtin:python_reference", tokenizer="byte")
    config.model.num_layers, config.model.width, config.model.num_heads = 1, 16, 2
    config.model.residual_dropout = 0.1
    config.data.sequence_length, config.training.batch_size, config.training.steps = 16, 4, 150
    config.evaluation.every, config.evaluation.documents, config.checkpoint.every = 0, 1, 10
    config.writers.every, config.writers.tensorboard, config.writers.console = 10, False, False
    return config
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.py"
    path.write_text(PAGE)
    return path


@pytest.fixture(scope="module")
def verified(page, tmp_path_factory):
    """A folder with its runs and receipt, made by the command."""
    workdir = tmp_path_factory.mktemp("verified")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "research"), *sys.path]))
        code = cli.main(
            [
                "verify-resume",
                f"--config={page}",
                f"--workdir={workdir}",
                "--platform=cpu",
                "--kill-step=60",
                "--config.training.ema_decay=0.9",
            ]
        )
    assert code == 0
    return workdir


@pytest.mark.slow
def test_a_killed_run_goes_on_and_the_receipt_says_so(verified):
    """Catches: a run that was not killed, or started over instead of going on; overrides that do not reach it."""
    receipt = json.loads((verified / RECEIPT).read_text())
    assert (receipt["verdict"], receipt["first_difference"]) == ("equal", None)
    assert receipt["steps"] == 150
    assert 60 <= receipt["killed_at_step"] < 150
    assert 10 <= receipt["resumed_from_step"] <= receipt["killed_at_step"]
    assert receipt["cores"] == sorted(os.sched_getaffinity(0))
    assert receipt["devices"]["platform"] == "cpu"
    assert receipt["versions"]["jax"]
    assert all(len(receipt["hashes"][name]) >= 32 for name in ("state", "metrics", "batches"))
    starts = json.loads((verified / "killed" / "run.json").read_text())["starts"]
    assert len(starts) == 2
    assert (
        json.loads((verified / "killed" / "config.json").read_text())["training"]["ema_decay"]
        == 0.9
    )


class Rows:
    """What a ledger asks of a loader."""

    first_row, local_batch_size, global_batch_size = 0, 2, 2

    def documents(self, step):
        return [np.array([step]), np.array([step + 1])]


def made_up(workdir, changed_step=None, **changes):
    """The outcome of a run that nobody trained."""
    workdir.mkdir()
    rows: Any = Rows()
    with Ledger(workdir, rows, lambda step: step - 1, print) as ledger:
        for step in range(1, 31):
            value = -1 if step == changed_step else step
            ledger.write(step, {"tokens": np.full((2, 4), value)})
    leaves = {f"params/{name}": {"hash": name} for name in "abcd"}
    records = [{"step": s, "split": "train", "loss": 1 / s} for s in (10, 20, 30)]
    return Outcome(
        **{"workdir": workdir, "step": 30, "leaves": leaves, "records": records, "speed": 1.0}
        | changes
    )


def test_what_differs_first_is_named(tmp_path):
    """Batches, then records, then leaves. Catches: a comparison that looks at the end only, or at one side's leaves."""
    whole = made_up(tmp_path / "whole")
    assert first_difference(whole, made_up(tmp_path / "same")) is None
    leaves = {**whole.leaves, "params/c": {"hash": "other"}}
    changed = dataclasses.replace(whole, leaves=leaves)
    assert first_difference(whole, changed) == "the leaf params/c of the state"
    less = dataclasses.replace(whole, leaves={k: v for k, v in leaves.items() if k < "params/c"})
    assert first_difference(less, whole) == "the leaf params/c of the state"
    records = [dict(record) for record in whole.records]
    records[1]["loss"] += 1e-7
    changed = dataclasses.replace(changed, records=records)
    assert first_difference(whole, changed) == "loss of the train record of step 20"
    assert largest_change(whole, changed) == {"train/loss": pytest.approx(1e-7)}
    longer = dataclasses.replace(whole, records=[*whole.records, whole.records[-1]])
    assert first_difference(whole, longer) == "3 records against 4"
    parted = made_up(tmp_path / "parted", changed_step=7, records=records, leaves=leaves)
    assert first_difference(whole, parted) == "the batch of step 7"


def test_a_run_that_fails_or_ends_too_soon_is_no_proof(page, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "research"), *sys.path]))
    with pytest.raises(RunFailed, match=r"failed: ablax: .*no_such_file"):
        verify_resume(["--config=no_such_file.py"], tmp_path / "a", say=lambda _: None)
    assert cli.main(["verify-resume", f"--config={page}", f"--workdir={tmp_path}"]) == 2
    assert "is not empty" in capsys.readouterr().err
