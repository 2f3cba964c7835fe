"""The run folder: what it holds, who may write it, and where its numbers came from.

config.json    the whole resolved configuration
run.json       provenance: versions, code, data, machine, every start, status
tokenizer/     the tokenizer
metrics.jsonl  one JSON object per line
checkpoints/   states
evals/         evaluations: totals and per-document sums
code/          sources of classes from outside Ablax
"""

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ablax.config import RequestError

Path = pathlib.Path
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")


CODE_STATE = "code.json"
"""Beside a copy of a package: what `code_state` said of the original."""


class RunFailed(Exception):
    """The run failed for a reason that its one line tells completely: exit code 1, no traceback."""


class Preempted(Exception):
    """The run was asked to stop, has saved, and can be started again: exit code 75."""


class Paused(Preempted):
    """The run has come to the step to which it was to go for now; evaluated and saved there, it can go on."""


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file by a temporary name and a rename, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2, default=_plain) + "\n")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


class RunFolder:
    """A folder that one run owns.

    Args:
      path: the folder; it need not exist.
      writer: whether this process may change it; of a run in several processes, one. In others what would write does
        nothing.
    """

    def __init__(self, path: str | os.PathLike, writer: bool = True):
        self.path = Path(path).expanduser().resolve()
        self.writer = writer

    checkpoints = property(lambda self: self.path / "checkpoints")
    evals = property(lambda self: self.path / "evals")
    tokenizer = property(lambda self: self.path / "tokenizer")
    metrics_file = property(lambda self: self.path / "metrics.jsonl")

    def exists(self) -> bool:
        """Whether a run has been started here."""
        try:
            return (self.path / "config.json").is_file()
        except OSError:  # a name that no file system takes, a folder that may not be looked into
            return False

    def require(self) -> "RunFolder":
        """Itself, if it holds a run.

        Raises:
          RequestError: if it does not.
        """
        if not self.exists():
            raise RequestError(
                f"{self.path} holds no run (no config.json); give the --workdir of a run"
            )
        return self

    def config(self) -> dict[str, Any]:
        """The resolved configuration as nested dicts."""
        return self._read("config.json")

    def status(self) -> dict[str, Any]:
        """run.json: provenance, `status` ("running", "finished", "failed", "paused", "preempted"), `step`.

        `step` is the newest whose save was begun, so that after a kill no checkpoint is newer: whether a run may get
        another length depends on it. Which steps are durable, the folder `checkpoints` says.
        """
        return self._read("run.json") if (self.path / "run.json").is_file() else {}

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise RequestError(f"{self.path / name} cannot be read: {error}") from error

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The records of metrics.jsonl; a line that a crash cut short is left out."""
        if not self.metrics_file.is_file():
            return
        with self.metrics_file.open() as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def update(self, **entries: Any) -> None:
        """Changes entries of run.json."""
        if not self.writer:
            return
        write_json(self.path / "run.json", self.status() | entries)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for writing; the kernel frees it when the process ends, however it ends.

        Raises:
          RequestError: if another process writes here, or the folder cannot be made.
        """
        if not self.writer:
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f"{self.path} cannot be made ({error.strerror}); choose another --workdir"
            ) from None
        lock = self.path / "lock"
        with lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise RequestError(
                    f"{self.path} is being written by another process ({holder}); "
                    "wait for it or use another --workdir"
                ) from None
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {platform.node()}")
            file.flush()
            try:
                yield
            finally:
                if list(self.path.iterdir()) == [lock]:  # refused before anything was written
                    lock.unlink()
                    self.path.rmdir()

    def set_aside(self) -> Path | None:
        """Moves the folder to a free name beside it and returns that name."""
        if not self.writer or not self.path.exists():
            return None
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        target = self.path.with_name(f"{self.path.name}.{stamp}")
        count = 0
        while target.exists():
            count += 1
            target = self.path.with_name(f"{self.path.name}.{stamp}.{count}")
        shutil.move(self.path, target)
        return target


def provenance() -> dict[str, Any]:
    """Where a number comes from: code, versions, machine and command."""
    return {
        "started": now(),
        "command": " ".join(sys.argv),
        "versions": versions(),
        "code": code_state(Path(__file__).resolve().parent),
        "machine": {
            "host": platform.node(),
            "system": platform.platform(),
            "cores": usable_cores(),
        },
    }


def versions() -> dict[str, str | None]:
    """Of Python, Ablax and the libraries that results depend on."""
    found = {"python": platform.python_version(), "ablax": _version("ablax")}
    return found | {name: _version(name) for name in LIBRARIES}


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def now() -> str:
    """The time, ISO 8601 with zone."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_state(folder: Path) -> dict[str, Any]:
    """Hash of the Python files of a package, and the git commit with what is uncommitted, where git keeps them.

    A package that is installed inside somebody's checkout is not of their commit. A copy says what was said of the
    original, unless it was changed.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(file.read_bytes())
    state: dict[str, Any] = {"sha256": digest.hexdigest()}
    with contextlib.suppress(OSError, ValueError):
        original = json.loads((folder.parent / CODE_STATE).read_text())
        if original["sha256"] == state["sha256"]:
            return original
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(folder)]
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD", "HEAD:./"], capture_output=True, text=True, timeout=5
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, timeout=5
        )
        if commit.returncode == 0:
            state |= {"commit": commit.stdout.split()[0], "uncommitted": bool(dirty.stdout.strip())}
    return state


def keep_sources(folder: Path, sources: Mapping[str, str]) -> None:
    """Keeps the sources of classes from outside in the run folder."""
    for name, text in sources.items():
        target = folder / "code" / (name.replace(":", ".") + ".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
