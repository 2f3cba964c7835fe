"""Checkpoints: what comes back is what was saved, or an error that says why not."""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ablax.config import RequestError
from ablax.training.checkpoints import Checkpoints, SaveError
from ablax.training.manifest import Damaged, leaves_of
from checkpoint_states import METRIC, Moments, fill, make_state, same

# Orbax leaves a coroutine behind when the file under it is broken.
BROKEN = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    fill(folder).close()
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_restores_bit_for_bit(saved: Path):
    """Fails if a leaf loses its dtype, the tree its classes, or the newest is not the one."""
    with Checkpoints(saved, writer=False) as checkpoints:
        assert checkpoints.all_steps() == [1, 2, 3]
        state, cursor, step = checkpoints.restore(jax.eval_shape(make_state))
        assert (step, cursor) == (3, {"bytes": 3})
        assert same(state, make_state(3))
        assert isinstance(state.opt_state[0], Moments)
        assert checkpoints.config(2) == {"seed": 2}
        assert checkpoints.restore(make_state(), 1)[2] == 1


def test_restore_obeys_the_templates_shardings(saved: Path):
    """Fails if arrays come back where they were saved instead of where the template wants them."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(make_state),
    )
    with Checkpoints(saved, writer=False) as checkpoints:
        state = checkpoints.restore(template)[0]
    assert state.params["kernel"].sharding == sharding


def test_best_and_newest_are_kept(tmp_path: Path):
    """Fails if retention counts the best among the newest, or forgets scores after a restart."""
    fill(tmp_path, (1, 2, 3, 4), keep=1).close()
    with Checkpoints(tmp_path, 1, METRIC) as checkpoints:
        assert checkpoints.best_step() == 2
        checkpoints.save(5, make_state(5), {}, {})
        checkpoints.wait()
        assert checkpoints.all_steps() == [2, 5]
        assert checkpoints.restore(make_state(), "best")[2] == 2


def test_best_needs_a_score(tmp_path: Path):
    """Fails if a checkpoint without the metric, or with NaN, passes for the best."""
    with Checkpoints(tmp_path, 3, METRIC) as checkpoints:
        checkpoints.save(1, make_state(1), {}, {})
        checkpoints.save(2, make_state(2), {}, {}, {METRIC: float("nan")})
        checkpoints.wait()
        with pytest.raises(RequestError, match=METRIC):
            checkpoints.restore(make_state(), "best")


def test_a_save_survives_donation(tmp_path: Path):
    """Fails if the asynchronous save reads the state's buffers after they were given away."""
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    state = {"a": jnp.arange(1 << 21, dtype=jnp.float32), "b": jnp.ones(5)}
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, {})
        for _ in range(3):
            state = advance(state)
        jax.block_until_ready(state)
        assert same(checkpoints.restore(jax.eval_shape(lambda: state))[0], expected)


class Slow(dict):
    """Takes its time where JSON is made of it."""

    def items(self):
        time.sleep(0.05)
        return super().items()


def test_a_save_survives_what_is_counted_on(tmp_path: Path):
    """Fails if JSON is written as it has become by then: it is not what its manifest says, and a good checkpoint passes
    for damaged."""
    meter = Slow(losses=[1.0])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), {"meter": meter}, {})
        meter["losses"].append(2.0)
        checkpoints.wait()
        assert checkpoints.saved(1).cursor() == {"meter": {"losses": [1.0]}}


def test_saving_a_step_again_replaces_it(tmp_path: Path):
    """Fails if the old checkpoint of the same step stays, or the save is skipped."""
    with Checkpoints(tmp_path) as checkpoints:
        for seed in (1, 2):
            checkpoints.save(7, make_state(seed), {"bytes": seed}, {})
        state, cursor, _ = checkpoints.restore(make_state())
        assert cursor == {"bytes": 2}
        assert same(state, make_state(2))


@pytest.mark.parametrize("ends", ["killed", "fails"])
def test_a_checkpoint_is_there_until_its_replacement_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
):
    """Catches: deleting first and writing then, which loses the only checkpoint if the writing does not end."""
    save, left = ocp.CheckpointManager.save, tmp_path / "left"

    def ending(self, *arguments, **options):
        shutil.copytree(self.directory, left)  # what a kill would leave
        if ends == "fails":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return save(self, *arguments, **options)

    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(7, make_state(1), {}, {})
        checkpoints.wait()
        monkeypatch.setattr(ocp.CheckpointManager, "save", ending)
        if ends == "fails":
            with pytest.raises(SaveError, match="checkpoint 7 is still good"):
                checkpoints.save(7, make_state(2), {}, {})
        else:
            checkpoints.save(7, make_state(2), {}, {})
        seed = 1 if ends == "fails" else 2
        assert same(checkpoints.restore(make_state())[0], make_state(seed))
        assert os.listdir(checkpoints.folder) == ["7"]
    with Checkpoints(left, keep=1) as checkpoints:
        assert same(checkpoints.restore(make_state())[0], make_state(1))
        assert os.listdir(left) == ["7"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.replace(params={**s.params, "extra": jnp.ones(2)}), ["params/extra", "[2]"]),
        (lambda s: s.replace(params={"bias": s.params["bias"]}), ["params/kernel", "[64, 32]"]),
        (lambda s: s.replace(step=jnp.float32(0)), ["step", "int32[]", "float32[]"]),
        (lambda s: make_state(rows=65), ["params/kernel", "[64, 32]", "[65, 32]"]),
    ],
    ids=["extra", "missing", "dtype", "shape"],
)
def test_a_state_that_does_not_fit_is_refused(saved: Path, change, words: list[str]):
    """Fails if a leaf is left at its initial value, cast or reshaped without a word."""
    with Checkpoints(saved, writer=False) as checkpoints, pytest.raises(RequestError) as error:
        checkpoints.restore(change(make_state()))
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder: Path) -> None:
    os.truncate(largest(folder), largest(folder).stat().st_size // 2)


def flip(folder: Path) -> None:
    content = bytearray(largest(folder).read_bytes())
    content[len(content) // 2] ^= 4
    largest(folder).write_bytes(content)


def edit_cursor(folder: Path) -> None:
    (folder / "cursor" / "metadata").write_text(json.dumps({"bytes": 99}))


def lose_manifest(folder: Path) -> None:
    shutil.rmtree(folder / "manifest")


def edit_scores(folder: Path) -> None:
    (folder / "scores" / "metadata").write_text(json.dumps({METRIC: -1.0}))


@BROKEN
@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (truncate, "params.kernel/0.0"),
        (flip, "params/kernel: not what was saved"),
        (edit_cursor, "3/cursor is not what was saved"),
        (edit_scores, "3/scores is not what was saved"),
        (lose_manifest, "3/manifest is missing"),
    ],
)
def test_damage_is_found_said_and_skipped(copy: Path, damage, where: str):
    """Fails if a damaged checkpoint is used, if its file is not named among those of its arrays, or if the run cannot
    go on from the one before.
    """
    hurt = largest(copy / "3").relative_to(copy)
    damage(copy / "3")
    said: list[str] = []
    with Checkpoints(copy, 3, METRIC, say=said.append) as checkpoints:
        state, _, step = checkpoints.restore(make_state())
        assert step == 2
        assert same(state, make_state(2))
        assert len(said) == 1
        assert "checkpoint 3" in said[0]
        assert where in said[0]
        assert (f"({hurt}: " in said[0]) == (damage in (truncate, flip))
        assert "going back to checkpoint 2" in said[0]
        checkpoints.save(3, make_state(30), {}, {})
        assert checkpoints.restore(make_state())[2] == 3


@BROKEN
def test_nothing_good_is_one_line(copy: Path):
    """Fails if a run starts from scratch, or with a traceback, when all its checkpoints are bad."""
    for step in (1, 2, 3):
        flip(copy / str(step))
    with (
        Checkpoints(copy, say=lambda _: None) as checkpoints,
        pytest.raises(RequestError, match="--fresh") as error,
    ):
        checkpoints.restore(make_state())
    assert "\n" not in str(error.value)


@BROKEN
def test_the_next_good_step_is_named(copy: Path):
    """Fails if a damaged step that was asked for sends the user to another damaged one."""
    flip(copy / "3")
    flip(copy / "2")
    with (
        Checkpoints(copy, writer=False, say=lambda _: None) as checkpoints,
        pytest.raises(
            RequestError, match=r"no checkpoint of \[3\] .* checkpoint 1 is, .* \(--step=1\)"
        ),
    ):
        checkpoints.restore(make_state(), 3)


def test_without_a_manifest_only_who_asks_for_it_reads(copy: Path):
    """Fails if a checkpoint whose content nobody can verify is used unasked, or silently, or is not
    held against the template.
    """
    lose_manifest(copy / "3")
    said: list[str] = []
    with Checkpoints(copy, writer=False, unverified=True, say=said.append) as checkpoints:
        state, _, step = checkpoints.restore(make_state())
        with pytest.raises(
            RequestError, match=r"float32\[64, 32\] in the checkpoint and float32\[65"
        ):
            checkpoints.restore(make_state(rows=65))
    assert step == 3
    assert same(state, make_state(3))
    assert "NOT VERIFIED" in said[0]


@BROKEN
def test_a_damaged_score_does_not_choose_the_best(copy: Path):
    """Fails if an edited score makes another checkpoint the best, or the damage is not said."""
    edit_scores(copy / "3")
    said: list[str] = []
    with Checkpoints(copy, 3, METRIC, writer=False, say=said.append) as checkpoints:
        assert checkpoints.best_step() == 2
    assert "3/scores is not what was saved" in said[0]


def test_arrays_are_read_by_path_and_verified(copy: Path, caplog: pytest.LogCaptureFixture):
    """Fails if a part of a checkpoint can be read without its hashes, or more than was asked for, or if Orbax warns of
    a file that only whole steps have."""
    with Checkpoints(copy, writer=False) as checkpoints:
        found = checkpoints.saved(3).arrays(lambda path: path.startswith("params/"))
        assert found.keys() == {"params/kernel", "params/bias"}
        assert np.array_equal(found["params/kernel"], make_state(3).params["kernel"])
        assert not caplog.records
        flip(copy / "3")
        with pytest.raises(Damaged, match="params/kernel"):
            checkpoints.saved(3).arrays(lambda path: path.startswith("params/"))


def test_a_checkpoint_knows_no_devices(copy: Path):
    """Fails if what Orbax notes of the devices that saved a state is needed to read it."""
    (copy / "3" / "state" / "_sharding").unlink()
    with Checkpoints(copy, writer=False, say=pytest.fail) as checkpoints:
        assert same(checkpoints.restore(make_state())[0], make_state(3))
        assert checkpoints.saved(3).arrays().keys() == leaves_of(make_state()).keys()


@BROKEN
def test_a_reader_changes_nothing(copy: Path):
    """Fails if evaluating a run moves or deletes files of a run that is still being written."""
    flip(copy / "3")
    (copy / "4.orbax-checkpoint-tmp").mkdir()
    before = sorted(copy.rglob("*"))
    with Checkpoints(copy, writer=False, say=lambda _: None) as checkpoints:
        assert checkpoints.restore(make_state())[2] == 2
    assert sorted(copy.rglob("*")) == before


def test_what_a_killed_save_left_is_removed(copy: Path):
    """Fails if half-written folders pile up until the disk is full."""
    (copy / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.latest_step() == 3
    assert not (copy / "4.orbax-checkpoint-tmp").exists()


@pytest.mark.parametrize("step", [9, "best"])
def test_asking_for_what_is_not_there(saved: Path, step):
    """Fails if another checkpoint is given instead."""
    with Checkpoints(saved, writer=False) as checkpoints, pytest.raises(RequestError, match="1, 2"):
        checkpoints.restore(make_state(), step)
