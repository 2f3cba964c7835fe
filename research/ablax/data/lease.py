"""One process builds a cache folder while the others wait, also when they share only a file system.

The lease is a file made with O_EXCL; its holder rewrites it every few seconds. A lease is stale
when its holder's process is gone (same machine) or when the file has not changed for a while by the
waiter's own clock, so clocks of different machines are never compared. The lease only saves work:
what makes a folder correct is that it is built under a temporary name and renamed once, so two
builders that both think they hold it still publish one whole folder.
"""

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from ablax.config import RequestError

Progress = Callable[[int, int], None]

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 150.0  # longer than the attribute cache of NFS (60 s) and a slow heartbeat together
_RECORD_BYTES = 512


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
    lease: "_Lease",
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
) -> "Iterator[_Lease | None]":
    """Yields the lease once this process holds it, or None once another has made the folder."""
    path = folder.with_name(f"{folder.name}.lease")
    pause = min(0.02, heartbeat_seconds)
    seen, seen_at = None, time.monotonic()
    while True:
        descriptor = _claim(path)
        if descriptor is not None:
            break
        if is_whole(folder):
            yield None
            return
        record = _read(path)
        if record != seen:
            seen, seen_at = record, time.monotonic()
            if progress is not None and record is not None and record.get("total"):
                progress(record["done"], record["total"])
        if record is not None and (is_dead(record) or time.monotonic() - seen_at > stale_seconds):
            _take_away(path, record)
            continue
        time.sleep(pause)
        pause = min(pause * 1.5, heartbeat_seconds)
    lease = _Lease(path, descriptor, heartbeat_seconds)
    try:
        # Between our last look and our lease, the previous holder may have published and let go.
        yield None if is_whole(folder) else lease
    finally:
        lease.release()


def _claim(path: Path) -> int | None:
    """Creates the lease file, or returns None when there is one already."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    except OSError as error:
        raise RequestError(
            f"cannot write the cache at {path.parent} ({error.strerror}): "
            "set ABLAX_CACHE to a folder that you can write"
        ) from error
    return None


class _Lease:
    """A held lease, renewed by a thread until `release`.

    It is written through its descriptor, and so never into the file of one who took it over.
    """

    def __init__(self, path: Path, descriptor: int, heartbeat_seconds: float):
        self.done, self.total = 0, 0
        self._path, self._descriptor = path, descriptor
        self._identity = {"machine": machine(), "pid": os.getpid(), "key": uuid.uuid4().hex}
        self._beats = 0
        self._stop = threading.Event()
        self._beat()
        self._thread = threading.Thread(
            target=self._renew, args=(heartbeat_seconds,), name="ablax-lease", daemon=True
        )
        self._thread.start()

    def _beat(self) -> None:
        record = {**self._identity, "beats": self._beats, "done": self.done, "total": self.total}
        os.pwrite(self._descriptor, json.dumps(record).ljust(_RECORD_BYTES).encode(), 0)
        os.fsync(self._descriptor)
        self._beats += 1

    def _renew(self, heartbeat_seconds: float) -> None:
        while not self._stop.wait(heartbeat_seconds):
            with contextlib.suppress(OSError):  # a missed renewal at worst costs a second build
                self._beat()

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._descriptor)
        record = _read(self._path)
        if record is not None and record.get("key") == self._identity["key"]:
            self._path.unlink(missing_ok=True)


def _read(path: Path) -> dict | None:
    """The lease's record; `{}` for one that is not (yet) readable; None when there is no lease."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def machine() -> str:
    """Names the set of process ids that this process can see."""
    namespace = "/proc/self/ns/pid"
    return f"{socket.gethostname()}/{os.readlink(namespace) if os.path.exists(namespace) else ''}"


def is_dead(record: dict) -> bool:
    """Whether the process of a record (`machine`, `pid`) is known to have ended: one of this machine."""
    if record.get("machine") != machine():
        return False
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _take_away(path: Path, record: dict) -> None:
    """Removes a stale lease, unless it was replaced by a live one since we read it."""
    grave = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, grave)
        if _read(grave) != record:
            with contextlib.suppress(OSError):
                os.link(grave, path)
        os.unlink(grave)
