"""Disks that are full, that fail, and that cannot be written: the file system itself refuses, nothing is pretended.

Fails if a failed save hurts an earlier checkpoint, leaves its folder behind, or makes later saves fail.
"""

import contextlib
import os
import pathlib
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.training import disk
from ablax.training.checkpoints import Checkpoints, SaveError
from checkpoint_states import same
from small_disks import mounted, run

MEBIBYTE = 1 << 20


def noise(seed: int) -> dict[str, Any]:
    """A state of one mebibyte that cannot be compressed much."""
    values = np.random.default_rng(seed).integers(0, 2**32, MEBIBYTE // 4, np.uint32)
    return {"a": jnp.asarray(values)}


def fails(checkpoints: Checkpoints, step: int, state: Any) -> SaveError:
    """The error of a save, which may come at once or from the background."""
    try:
        checkpoints.save(step, state, {}, {})
        checkpoints.wait()
    except SaveError as error:
        return error
    pytest.fail(f"checkpoint {step} was saved")


def is_intact(checkpoints: Checkpoints, step: int, state: Any) -> bool:
    found, _, at = checkpoints.restore(jax.eval_shape(lambda: state))
    return at == step and same(found, state)


@pytest.mark.parametrize("noticed", ["before", "while writing", "at once"])
def test_a_full_disk(small_disk: pathlib.Path, noticed: str, monkeypatch: pytest.MonkeyPatch):
    """ENOSPC. Quotas and other writers are noticed only while writing."""
    states = {step: noise(step) for step in (1, 2, 3)}
    with Checkpoints(small_disk / "checkpoints", keep=3) as checkpoints:
        checkpoints.save(1, states[1], {}, {})
        checkpoints.save(2, states[2], {}, {})
        checkpoints.wait()
        (small_disk / "other").write_bytes(bytes(MEBIBYTE // 2))
        if noticed == "at once":  # to the last byte: not even a folder can be made
            with contextlib.suppress(OSError), (small_disk / "other").open("ab", 0) as file:
                while True:
                    file.write(bytes(1 << 12))
        if noticed != "before":
            monkeypatch.setattr(disk, "check_room", lambda *_: None)
        error = fails(checkpoints, 3, states[3])
        assert "the disk is full" in str(error)
        assert "checkpoint 2 is still good" in str(error)
        assert f"{error.needed:,} bytes needed, {error.free:,} free" in str(error)
        assert MEBIBYTE <= error.needed < MEBIBYTE * 1.1
        assert error.free < MEBIBYTE
        if noticed != "at once":  # then Orbax's threads are still at it; see below
            assert sorted(os.listdir(checkpoints.folder)) == ["1", "2"]
        assert is_intact(checkpoints, 2, states[2])
        (small_disk / "other").unlink()
        checkpoints.save(3, states[3], {}, {})
        checkpoints.wait()
        assert is_intact(checkpoints, 3, states[3])
        assert sorted(os.listdir(checkpoints.folder)) == ["1", "2", "3"]


def test_a_disk_that_cannot_be_written(small_disk: pathlib.Path):
    """EROFS: what kernels do to a file system with errors."""
    with Checkpoints(small_disk / "checkpoints") as checkpoints:
        checkpoints.save(1, noise(1), {}, {})
        checkpoints.wait()
        run("mount", "-o", "remount,ro", small_disk)
        error = fails(checkpoints, 2, noise(2))
        assert "Read-only file system" in str(error)
        assert "checkpoint 1 is still good" in str(error)
        assert os.listdir(checkpoints.folder) == ["1"]
        assert is_intact(checkpoints, 1, noise(1))
        run("mount", "-o", "remount,rw", small_disk)
        checkpoints.save(2, noise(2), {}, {})
        checkpoints.wait()
        assert is_intact(checkpoints, 2, noise(2))


def test_a_disk_with_errors(tmp_path: pathlib.Path):
    """EIO: a block device that ends before its file system does, as a dying disk or a lost volume answers."""
    image, size = tmp_path / "image", 16 * MEBIBYTE
    image.write_bytes(b"")
    os.truncate(image, size)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-N", 128, image)
    device = run("losetup", "-f", "--show", image)

    def resize(length: int) -> None:
        os.truncate(image, length)
        subprocess.run(["losetup", "-c", device], check=True)

    try:
        with (
            mounted(tmp_path / "disk", device) as folder,
            Checkpoints(folder / "checkpoints") as checkpoints,
        ):
            checkpoints.save(1, noise(1), {}, {})
            checkpoints.wait()
            os.sync()
            whole = image.read_bytes()
            resize(2 * MEBIBYTE)
            error = fails(checkpoints, 2, noise(2))
            assert "Input/output error" in str(error)
            assert "checkpoint 1 is still good" in str(error)
            assert os.listdir(checkpoints.folder) == ["1"]
            resize(size)
            image.write_bytes(whole)
            assert is_intact(checkpoints, 1, noise(1))
            checkpoints.save(2, noise(2), {}, {})
            checkpoints.wait()
            assert is_intact(checkpoints, 2, noise(2))
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_room_for_a_run_is_asked_for_before_it_starts(small_disk: pathlib.Path):
    """Fails if a run starts whose first checkpoint cannot be saved, or that fits is refused."""
    needed = disk.size_of(jax.eval_shape(lambda: noise(0)))
    assert disk.check_run(small_disk / "run", needed, keep=1) is None
    said = disk.check_run(small_disk / "run", needed, keep=3)
    assert said is not None
    assert "checkpoint.keep=3" in said
    (small_disk / "other").write_bytes(bytes(5 * MEBIBYTE // 2))
    with pytest.raises(RequestError, match=r"takes 1,\d+,\d+ bytes and \d+,\d+ are free") as caught:
        disk.check_run(small_disk / "run", needed, keep=1)
    assert "\n" not in str(caught.value)
    assert not (small_disk / "run").exists()


def test_the_expected_size_is_the_size_on_disk(tmp_path: pathlib.Path):
    """Fails if sizes of arrays are counted in elements, or half of them is forgotten."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, noise(1), {}, {})
    found = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    expected = disk.size_of(noise(1))
    assert 0.9 * expected < found < expected
