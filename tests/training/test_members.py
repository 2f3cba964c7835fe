"""Several runs as one program, against the same runs alone. Real runs of a tiny decoder and a tiny LSTM."""

import dataclasses
import json
import shutil
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ablax
from ablax import members
from ablax.config import RequestError
from ablax.data.shared import SharedBatches
from ablax.experiment import base
from ablax.members import train_members
from ablax.run import Preempted, RunFolder
from ablax.training.groups import groups
from ablax.training.guard import GuardState
from ablax.training.members import Members
from ablax.training.meter import CLOCKED
from ablax.training.recorded import compare_ledgers
from ablax.training.recovery import Diverged
from ablax.training.saved import SavedCheckpoint
from ablax.training.state import TrainState

STEPS = 6
FAMILIES = {
    "decoder": ({"num_heads": 2, "residual_dropout": 0.1}, "windows"),
    "lstm": ({"dropout_hidden": 0.1}, "streams"),
}
ARMS = (
    {},
    {"seed": 1, "optimizer.learning_rate": 3e-3, "objective.label_smoothing": 0.2},
    {"optimizer.weight_decay": 0.3, "model.init_scale": 0.5, "optimizer.b1": 0.8},
    {"optimizer.learning_rate": 1e30},
)
"""The last one diverges."""


def experiment(family: Any = "decoder", **changes: Any):
    knobs, layout = FAMILIES[family]
    config = base(
        model=family, source="builtin:python_reference", tokenizer="byte", schedule="constant"
    )
    config.model.num_layers, config.model.width = 1, 16
    config.model.update(knobs)
    config.data.layout, config.data.sequence_length = layout, 16
    config.objective.label_smoothing = 0.1
    config.training.batch_size, config.training.steps = 4, STEPS
    config.evaluation.documents, config.evaluation.every = 1, 3
    config.checkpoint.every, config.checkpoint.keep = 2, 9
    config.writers.every, config.writers.tensorboard = 1, False
    return ablax.resolve(config, changes)


def arms(family: Any = "decoder", **changes: Any):
    return [experiment(family, **{**changes, **arm}) for arm in ARMS]


def together(experiments, folder) -> Any:
    """Trains quietly in folder/0, folder/1, ..."""
    runs = [(one, folder / str(i)) for i, one in enumerate(experiments)]
    return train_members(runs, say=lambda line: None)


def alone(one, workdir):
    return ablax.train(one, workdir, progress=False)


def arrays(workdir, step=STEPS):
    found = SavedCheckpoint(workdir / "checkpoints", step).arrays()
    return {name: np.asarray(leaf) for name, leaf in found.items()}


def manifest(workdir, step=STEPS):
    path = workdir / "checkpoints" / str(step) / "manifest" / "metadata"
    return json.loads(path.read_text())["leaves"]


def records(workdir):
    return [{k: v for k, v in r.items() if k not in CLOCKED} for r in RunFolder(workdir).metrics()]


def same_run(one, other, step=STEPS, rtol=1e-5, atol=2e-5):
    """Whether two folders hold the same run, up to the order of float32 additions.

    Measured after STEPS: 2e-6 in a parameter, 1e-7 in a record; the rest is room for other processors.
    """
    mine, theirs = arrays(one, step), arrays(other, step)
    assert mine.keys() == theirs.keys()
    for name, leaf in mine.items():
        if name.startswith("params/"):
            np.testing.assert_allclose(leaf, theirs[name], rtol=0, atol=atol, err_msg=name)
    lines = records(one), records(other)
    assert [list(line) for line in lines[0]] == [list(line) for line in lines[1]]
    for a, b in zip(*lines, strict=True):
        numbers = [name for name in a if isinstance(a[name], float) and "accuracy" not in name]
        np.testing.assert_allclose([a[n] for n in numbers], [b[n] for n in numbers], rtol=rtol)
    assert compare_ledgers(one, other).same


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """Three finished members, and one that diverged; nobody may write in their folders."""
    folder = tmp_path_factory.mktemp("members")
    *good, bad = together(arms(), folder)
    assert all(run.finished for run in good)
    assert isinstance(bad, Diverged)
    return folder


def test_a_member_is_its_run_alone(joint, tmp_path):
    """Catches: a knob, a key or a batch of another member; metrics of a sum of members; a file that is not written."""
    alone(arms()[1], tmp_path / "alone")
    same_run(joint / "1", tmp_path / "alone")
    for name in ("config.json", "run.json", "tokenizer", "metrics.jsonl", "evals", "ledger"):
        assert (joint / "1" / name).exists()
    mine, other = (RunFolder(p).status() for p in (joint / "1", tmp_path / "alone"))
    assert mine.keys() == other.keys()
    assert mine["fingerprint"] == other["fingerprint"]
    assert records(joint / "0") != records(joint / "2")
    assert compare_ledgers(joint / "0", joint / "2").same


def test_a_state_that_a_member_was_given_is_not_kept_beside_it():
    """Catches: the states that the runs began with, alive to their end, which doubles what a device must hold."""
    zero, rng = jnp.zeros((), jnp.int32), jnp.zeros(2, jnp.uint32)
    given = TrainState(zero, {"w": jnp.arange(3.0)}, (), (), (), (), rng, GuardState.fresh())
    seats = Members(cast(Any, None), given, 2, jax.devices()[:1])
    seats.put(1, given)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    np.testing.assert_array_equal(seats.take(1).params["w"], np.arange(3.0))


def test_a_member_that_diverges_disturbs_nobody(joint):
    """The others are as alone (see above). Catches: a verdict over all members, an end of all at the first failure."""
    status = RunFolder(joint / "3").status()
    assert (status["status"], status["refused"][-1]["action"]) == ("failed", "stop")
    assert {RunFolder(joint / str(i)).status()["status"] for i in range(3)} == {"finished"}


def test_a_stop_saves_all_and_the_same_call_goes_on(joint, tmp_path, monkeypatch):
    """Also with one that is two steps behind. Catches: a member that is not saved, members that must begin together, a
    resume of other numbers."""
    drive, stops = members.drive_all, []

    def stopping(runs, stack, breakable):
        def watched(first):
            stops.append(first)
            if len(stops) == 4:
                breakable.__self__.reason = "stopped by SIGTERM"
            return breakable(first)

        return drive(runs, stack, watched)

    monkeypatch.setattr(members, "drive_all", stopping)
    with pytest.raises(Preempted, match="saved at step 4 of 6"):
        together(arms(), tmp_path)
    assert {RunFolder(tmp_path / str(i)).status()["status"] for i in range(3)} == {"preempted"}
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "0" / "checkpoints" / "4")
    assert [isinstance(end, Diverged) for end in together(arms(), tmp_path)] == [False] * 3 + [True]
    for index in range(3):
        assert manifest(tmp_path / str(index)) == manifest(joint / str(index))
        assert records(tmp_path / str(index)) == records(joint / str(index))


def test_groups_say_why():
    """Catches: runs of other programs that are stacked, and a refusal without the knob."""
    wide = experiment(**{"model.width": 32})
    undropped = experiment(**{"model.residual_dropout": 0.0})
    split = experiment(**{"parallel.fsdp": 2})
    named = dataclasses.replace(experiment(), name="x")
    found = groups([*arms(), wide, undropped, split, named])
    assert [group.members for group in found] == [(0, 1, 2, 3, 7), (4,), (5,), (6,)]
    assert found[0].why == ""
    assert "model.width: 16 and 32" in found[1].why
    assert "model.residual_dropout: 0.1 and 0.0" in found[2].why
    assert "parallel.fsdp=2" in found[3].why
    assert not found[3].joint
    assert [group.members for group in groups(arms(), most=2)] == [(0, 1), (2, 3)]


def test_others_are_refused_before_anything_is_written(tmp_path):
    wide = experiment(**{"model.width": 32})
    with pytest.raises(RequestError, match=r"model\.width: 16 and 32"):
        together([experiment(), wide], tmp_path)
    with pytest.raises(RequestError, match="two members have one folder"):
        train_members([(experiment(), tmp_path / "a")] * 2)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_members_share_is_drawn_once():
    """Catches: a reader that is behind and gets another batch."""

    class Counted:
        batch = staticmethod(lambda step: ("again", step))
        iterate = staticmethod(lambda step: iter(range(step, 99)))

    shared: Any = SharedBatches(Counted())  # type: ignore[arg-type]
    with shared.iterate(3) as one, shared.iterate(3) as two:
        assert [next(one) for _ in range(3)] == [3, 4, 5]
        assert [next(two) for _ in range(3)] == [3, 4, 5]
    with shared.iterate(0) as behind:
        assert next(behind) == ("again", 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", FAMILIES)
def test_hundred_steps(family, tmp_path):
    """Also from the middle on alone. Rounding errors grow with the steps: to 4e-4 in a parameter, 5e-5 in a record."""
    options = {"training.steps": 100, "checkpoint.every": 50, "evaluation.every": 50}
    chosen = arms(family, **options)[:3]
    together(chosen, tmp_path)
    for index, one in enumerate(chosen):
        alone(one, tmp_path / "alone" / str(index))
        same_run(tmp_path / str(index), tmp_path / "alone" / str(index), 100, rtol=1e-3, atol=5e-3)
    shutil.copytree(tmp_path / "1", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "100")
    RunFolder(tmp_path / "half").update(status="preempted", step=50)
    assert alone(chosen[1], tmp_path / "half").finished
    same_run(tmp_path / "half", tmp_path / "alone" / "1", 100, rtol=1e-3, atol=5e-3)
