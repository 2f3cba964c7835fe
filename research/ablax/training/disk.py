"""The file system that checkpoints lie on: what it has room for, and what is said when it fails."""

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ablax.config import RequestError
from ablax.run import RunFailed

FULL = (errno.ENOSPC, errno.EDQUOT)
# JSON, tree metadata and folders of a checkpoint beside its arrays; a block for each small file.
OVERHEAD_BYTES = 64 << 10
REPLACED = ".replaced"


class SaveError(RunFailed):
    """A checkpoint did not become durable; earlier ones are untouched and a later save may succeed.

    Attributes:
      needed: bytes that the checkpoint takes at most, uncompressed.
      free: bytes free on the file system.
    """

    def __init__(self, text: str, needed: int, free: int):
        super().__init__(text)
        self.needed, self.free = needed, free


def size_of(state: Any) -> int:
    """Bytes that a checkpoint of a state (arrays or their shapes) takes at most: it is compressed."""
    leaves = jax.tree.leaves(state)
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in leaves) + OVERHEAD_BYTES


def free_bytes(folder: Path) -> int:
    """What this user may still write at a folder, which need not exist yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def check_room(folder: Path, step: int, needed: int, good: int | None) -> None:
    """Asked before a save, so that it is not half written.

    Args:
      good: newest durable step, or None.

    Raises:
      SaveError: if the checkpoint would not fit.
    """
    if free_bytes(folder) < needed:
        raise failed_save(folder, step, OSError(errno.ENOSPC, ""), needed, good)


def check_run(folder: Path, needed: int, keep: int) -> str | None:
    """Asked before the first step: whether a run's checkpoints will fit.

    Args:
      folder: the run's folder, which need not exist yet.
      needed: bytes of one checkpoint.
      keep: how many are kept.

    Returns:
      A warning, if there is room for one but not for all that will be there at once: those that
      are kept, the best, and the one being written.

    Raises:
      RequestError: if not even one fits.
    """
    free = free_bytes(folder)
    if free < needed:
        raise RequestError(
            f"{folder}: a checkpoint of this run takes {needed:,} bytes and {free:,} are free; "
            "free some, or choose a --workdir on another disk"
        )
    saved = [path for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    more = (keep + 2 - len(saved)) * needed
    if free < more:
        return (
            f"{folder}: checkpoint.keep={keep} may need {more:,} bytes more at once and {free:,} "
            "are free; free some, or lower checkpoint.keep"
        )
    return None


def failed_save(
    folder: Path, step: int, error: Exception, needed: int, good: int | None
) -> SaveError:
    """The error of a save, with what it needed, what there was, and what is left to go on from."""
    free = free_bytes(folder)
    full = getattr(error, "errno", None) in FULL or os.strerror(errno.ENOSPC) in str(error)
    first = str(error).split("\n")[0].split(" [tensorstore_spec")[0]
    reason = "the disk is full" if full else first[:400]
    left = "there is no earlier one" if good is None else f"checkpoint {good} is still good"
    return SaveError(
        f"checkpoint {step} was not saved in {folder}: {reason} "
        f"({needed:,} bytes needed, {free:,} free); {left}",
        needed,
        free,
    )


def remove_unfinished(folder: Path) -> None:
    """Removes what a save that failed or was killed left behind."""
    for path in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(checkpoint: Path) -> None:
    """Gives a checkpoint a name under which nobody looks for one, until another of its step is durable."""
    checkpoint.rename(checkpoint.with_name(checkpoint.name + REPLACED))


def settle_replaced(folder: Path) -> None:
    """Removes what was set aside if there is another of its step by now, and takes it back if there is none."""
    for aside in folder.glob(f"*{REPLACED}"):
        if aside.with_suffix("").exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            with contextlib.suppress(
                OSError
            ):  # a disk that takes no writes; the next start tries again
                aside.rename(aside.with_suffix(""))
