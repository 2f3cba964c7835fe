"""A lease: which of many processes works on something, also when they share only a file system.

It is a file made with O_EXCL; its holder rewrites it every few seconds. A lease is stale when its holder's process is
gone (same machine) or when the file has not changed for a while by the waiter's own clock, so clocks of different
machines are never compared. A lease only saves work: what two holders do who both think that it is theirs must be
right all the same.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 150.0  # longer than the attribute cache of NFS (60 s) and a slow heartbeat together
_RECORD_BYTES = 512


class Watched:
    """A lease as somebody sees who does not hold it.

    Args:
      path: the lease's file.
      stale_seconds: after this long without a renewal its holder counts as dead.
    """

    def __init__(self, path: Path, stale_seconds: float = STALE_SECONDS):
        self.path, self._stale = path, stale_seconds
        self._seen, self._seen_at = None, time.monotonic()

    def holder(self) -> dict | None:
        """Whose it is: `machine`, `pid`, `done`, `total`; `{}` while the file is being written; None if it is free.

        A stale lease is taken away, and so is free.
        """
        record = read(self.path)
        if record != self._seen:
            self._seen, self._seen_at = record, time.monotonic()
        if record is None:
            return None
        if is_dead(record) or time.monotonic() - self._seen_at > self._stale:
            take_away(self.path, record)
            return None
        return record


class Lease:
    """A held lease, renewed by a thread until `release`; see `claim`.

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

    @classmethod
    def claim(cls, path: Path, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> "Lease | None":
        """Takes the lease, or returns None when it is somebody's.

        Raises:
          OSError: if the file cannot be made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            return cls(path, descriptor, heartbeat_seconds)
        return None

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

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
        """Lets go of it."""
        self._stop.set()
        self._thread.join()
        os.close(self._descriptor)
        record = read(self._path)
        if record is not None and record.get("key") == self._identity["key"]:
            self._path.unlink(missing_ok=True)


def read(path: Path) -> dict | None:
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


def take_away(path: Path, record: dict) -> None:
    """Removes a stale lease, unless it was replaced by a live one since we read it."""
    grave = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, grave)
        if read(grave) != record:
            with contextlib.suppress(OSError):
                os.link(grave, path)
        os.unlink(grave)
