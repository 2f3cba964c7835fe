"""Verified resume: real processes, a real SIGKILL, a receipt; and what it says when something differs."""

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np
import pytest

from ablax import cli, verification
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
    assert 60 <= receipt["killed_at_step"] < 80  # at the asked step, or soon after
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
    workdir.mkdir(exist_ok=True)
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


@pytest.fixture
def staged(monkeypatch, tmp_path):
    """Stages a GPU's runs, name -> losses, which nobody trains; returns the receipt and what was said."""

    def stage(runs, **options):
        def ended(arguments, workdir, environment):
            outcome = made_up(workdir)
            status = {"devices": {"platform": "gpu"}}
            (workdir / "run.json").write_text(json.dumps(status))
            flags = environment.get("XLA_FLAGS", "")
            loss, deterministic = runs[workdir.name], verification.DETERMINISTIC in flags
            records = [{"step": 10, "split": "train", "loss": loss}]
            speed = 2.0 if deterministic else 3.0
            return dataclasses.replace(outcome, records=records, speed=speed)

        said = []
        monkeypatch.setattr(verification, "finish", ended)
        monkeypatch.setattr(verification, "kill", lambda *_: (15, 10))
        return verify_resume([], tmp_path / "proof", say=said.append, **options), said

    return stage


@pytest.mark.parametrize(
    ("resumed", "verdict"), [(1.0, "equal"), (1.15, "within noise"), (1.25, "different")]
)
def test_on_a_gpu_the_noise_is_measured(staged, resumed, verdict):
    """Catches: equal bits asked of programs that do not give them, a difference that counts as noise because it was
    never compared, and noise that is measured although nothing differs."""
    receipt, said = staged({"undisturbed": 1.0, "killed": resumed, "again": 1.1})
    assert receipt["verdict"] == verdict
    assert any("measuring the noise" in line for line in said) == (verdict != "equal")
    assert (receipt["same_seed_noise"] is None) == (verdict == "equal")


@pytest.mark.parametrize(("resumed", "verdict"), [(1.0, "equal"), (1.1, "different")])
def test_deterministic_programs_must_be_equal_and_their_cost_is_said(staged, resumed, verdict):
    """Catches: noise allowed although it was to be excluded, a cost that compares a run with itself."""
    runs = {"undisturbed": 1.0, "killed": resumed, "plain": 1.1}
    receipt, said = staged(runs, deterministic=True)
    assert receipt["verdict"] == verdict
    assert receipt["deterministic_time_ratio"] == 1.5
    assert "deterministic programs take 1.500 of the time of others" in said
    assert verification.DETERMINISTIC in receipt["environment"]["XLA_FLAGS"]


def test_a_run_that_somebody_else_killed_is_no_proof(tmp_path, monkeypatch):
    """As the kernel does when memory is short. Catches: a traceback about a ledger that is not there."""
    dying = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(verification, "command", lambda *_: dying)
    with pytest.raises(RunFailed, match=r"ended \(-9\) before it could be killed at step 5"):
        verification.kill([], tmp_path / "run", os.environ, 5)


def test_a_run_that_fails_or_ends_too_soon_is_no_proof(page, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "research"), *sys.path]))
    with pytest.raises(RunFailed, match=r"failed: ablax: .*no_such_file"):
        verify_resume(["--config=no_such_file.py"], tmp_path / "a", say=lambda _: None)
    assert cli.main(["verify-resume", f"--config={page}", f"--workdir={tmp_path}"]) == 2
    assert "is not empty" in capsys.readouterr().err
