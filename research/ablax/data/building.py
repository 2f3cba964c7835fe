"""One process builds a cache folder while the others wait, also when they share only a file system.

A lease says who builds. What makes a folder correct is that it is built under a temporary name and renamed once, so
two builders that both think they hold the lease still publish one whole folder.
"""

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from ablax.config import RequestError
from ablax.lease import HEARTBEAT_SECONDS, STALE_SECONDS, Lease, Watched

Progress = Callable[[int, int], None]


def build_once(
    folder: Path,
    build: Callable[[Path, Progress], None],
    is_whole: Callable[[Path], bool],
    progress: Progress | None = None,
    *,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    stale_seconds: float = STALE_SECONDS,
) -> None:
    """Makes `folder` exist and be whole; of all the processes that ask for it, one builds it.

    Args:
      folder: where the result will lie. Its parent is made when missing.
      build: `build(temporary, report)` fills the empty folder `temporary` and calls `report(done,
        total)`.
      is_whole: tells whether a folder holds everything it should; one that does not is built again.
      progress: called with (done, total) while this process builds or waits for another.
      heartbeat_seconds: how often the builder renews its lease, and the longest pause of a waiter.
      stale_seconds: after this long without a renewal the builder counts as dead and the lease is
        taken over.

    Raises:
      RequestError: if the cache cannot be written or a broken folder cannot be removed.
      Exception: whatever `build` raises; nothing is left behind then.
    """
    if is_whole(folder):
        return
    with _lease(folder, is_whole, progress, heartbeat_seconds, stale_seconds) as lease:
        if lease is not None:
            _build(folder, build, is_whole, progress, lease)


def _build(
    folder: Path,
    build: Callable[[Path, Progress], None],
    is_whole: Callable[[Path], bool],
    progress: Progress | None,
    lease: Lease,
) -> None:
    for left_over in folder.parent.glob(f"{folder.name}.*.building"):
        shutil.rmtree(left_over, ignore_errors=True)
    if folder.exists():
        _remove_broken(folder)
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.building")
    temporary.mkdir()

    def report(done: int, total: int) -> None:
        lease.done, lease.total = done, total
        if progress is not None:
            progress(done, total)

    try:
        build(temporary, report)
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        os.rename(temporary, folder)
    except OSError:
        # Suspended past `stale_seconds`, we may find that another builder has published the same.
        if not is_whole(folder):
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_broken(folder: Path) -> None:
    grave = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.building")
    try:
        os.rename(folder, grave)
    except OSError as error:
        raise RequestError(
            f"{folder} is damaged and cannot be replaced ({error.strerror}): delete it"
        ) from error
    shutil.rmtree(grave, ignore_errors=True)


@contextlib.contextmanager
def _lease(
    folder: Path,
    is_whole: Callable[[Path], bool],
    progress: Progress | None,
    heartbeat_seconds: float,
    stale_seconds: float,
) -> Iterator[Lease | None]:
    """Yields the lease once this process holds it, or None once another has made the folder."""
    path = folder.with_name(f"{folder.name}.lease")
    watched = Watched(path, stale_seconds)
    pause = min(0.02, heartbeat_seconds)
    while (lease := _claim(path, heartbeat_seconds)) is None:
        if is_whole(folder):
            yield None
            return
        holder = watched.holder()
        if holder is None:
            continue
        if progress is not None and holder.get("total"):
            progress(holder["done"], holder["total"])
        time.sleep(pause)
        pause = min(pause * 1.5, heartbeat_seconds)
    with lease:
        # Between our last look and our lease, the previous holder may have published and let go.
        yield None if is_whole(folder) else lease


def _claim(path: Path, heartbeat_seconds: float) -> Lease | None:
    try:
        return Lease.claim(path, heartbeat_seconds)
    except OSError as error:
        raise RequestError(
            f"cannot write the cache at {path.parent} ({error.strerror}): "
            "set ABLAX_CACHE to a folder that you can write"
        ) from error
