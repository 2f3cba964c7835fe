"""The ranks of a run: the words they exchange, agreement, and what ends them.

Words travel through the key-value store of `jax.distributed`, which needs no device, no compiled program and no shared
file system. Process 0 holds it. A process that is alone has the same interface and nobody to ask.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax

from ablax.config import RequestError
from ablax.run import Preempted, RunFailed

AGREE_SECONDS = 3600.0  # a rank that cannot come is noticed earlier, by its heartbeat
POLL_SECONDS = 0.5
LINGER_SECONDS = 3.0  # how long process 0 keeps the store open for the last words
_FAILED = "failed"
_GONE = "ablax/gone"  # of no run: a process that fails outside of one

# Exit codes of what ends a run, those of the command line; everything else is 1.
ENDS: dict[type[BaseException], int] = {RequestError: 2, Preempted: 75, KeyboardInterrupt: 130}


class RankFailed(RunFailed):
    """Another rank ended the run; the line says which and why."""


def code_of(error: BaseException) -> int:
    """The exit code of what ended a run."""
    return next((code for kind, code in ENDS.items() if isinstance(error, kind)), 1)


class Ranks:
    """This process and the others of its run.

    Args:
      index, count: rank of this process, and how many there are.
      client: JAX's client of the key-value store; None when alone.
      coordinator: "host:port" of process 0.

    Attributes:
      ended: whether this process has said that it ends.
    """

    def __init__(self, index: int = 0, count: int = 1, client: Any = None, coordinator: str = ""):
        self.index, self.count, self._client, self._coordinator = index, count, client, coordinator
        self._run, self._uses = 0, {}
        self.ended = False

    def begin(self) -> None:
        """A new run of the same processes: what was said in the one before is not heard in this one."""
        self._run, self._uses = self._run + 1, {}

    def _key(self, key: str) -> str:
        return f"ablax/{self._run}/{key}"

    @property
    def first(self) -> bool:
        """Whether this is process 0, which writes."""
        return self.index == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def put(self, key: str, value: str) -> None:
        """Writes a word, over an older one."""
        self._client.key_value_set(self._key(key), value, allow_overwrite=True)

    def take(self, key: str) -> str | None:
        """A word, or None if nobody has written it. Raises what the store raises when it is gone."""
        return self._get(self._key(key))

    def _get(self, name: str) -> str | None:
        try:
            return self._client.key_value_try_get(name)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def all(self, folder: str) -> dict[int, str]:
        """Rank -> its word under `folder/rank`."""
        found = self._client.key_value_dir_get(self._key(f"{folder}/"))
        return {int(key.rsplit("/", 1)[1]): value for key, value in found}

    def wait(self, key: str, rank: int, seconds: float) -> str:
        """A word, as soon as `rank` has written it.

        Raises:
          RequestError, RankFailed: if a rank fails first, or the word does not come in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self._client.blocking_key_value_get(self._key(key), int(POLL_SECONDS * 1000))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise RankFailed("rank 0 is gone, and with it the run") from error
            if failure := self.failure():
                raise failure
            if time.monotonic() > deadline:
                raise RankFailed(
                    f"rank {rank} did not come to {key.split('/')[0]!r} within {seconds:.0f} s of rank {self.index}; "
                    "see its output"
                )

    def coordinator_listens(self) -> bool:
        """False if process 0 is known to have ended: its machine refuses connections to its port."""
        with contextlib.suppress(OSError):
            try:
                connect(self._coordinator).close()
            except ConnectionRefusedError:
                return False
        return True

    def fail(self, error: BaseException, for_good: bool = False) -> None:
        """Tells the others why this rank ends the run, unless a rank has done so before.

        Args:
          for_good: whether this process ends, and not only the run.
        """
        line = " ".join(str(error).split("\n"))[:1000] or type(error).__name__
        if not isinstance(error, tuple(ENDS)) and not isinstance(error, RunFailed):
            line = f"{type(error).__name__}: {line}"
        self.ended = self.ended or for_good
        word = json.dumps([self.index, line, code_of(error)])
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(_GONE if for_good else self._key(_FAILED), word)

    def failure(self) -> Exception | None:
        """What ended the run, if something did."""
        return self._told(self._key(_FAILED)) if self.several else None

    def gone(self) -> Exception | None:
        """What ended another process for good, if something did."""
        return self._told(_GONE)

    def _told(self, name: str) -> Exception | None:
        word = self._get(name)
        if word is None:
            return None
        rank, line, code = json.loads(word)
        told = line if line.startswith("rank ") else f"rank {rank}: {line}"
        kind = next((kind for kind, c in ENDS.items() if c == code), RankFailed)
        return kind(told) if issubclass(kind, Exception) else RankFailed(told)

    def leave(self) -> None:
        """Process 0 keeps the store until all have seen how the run ended and end themselves, or for three seconds.

        Who has left a run (its heartbeat says so) is not at its end yet, and would be aborted by JAX without the store.
        """
        deadline = time.monotonic() + LINGER_SECONDS
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.put(f"left/{self.index}", "")
            self.put(f"ends/{self.index}", "")
            ending = False
            while self.first and time.monotonic() < deadline and not ending:
                ending = len(self.all("ends")) == self.count
                time.sleep(0.05)

    def agree(self, what: str, items: Mapping[str, Any], seconds: float = AGREE_SECONDS) -> None:
        """Returns when all ranks hold equal items; nobody gets further while one does not.

        Args:
          what: names the occasion.
          items: name -> JSON value.

        Raises:
          RequestError: on every rank, naming the first rank and item that differ from rank 0, and both values.
          RankFailed: if a rank does not come.
        """
        if not self.several:
            return
        own = json.loads(json.dumps(dict(items), default=str))
        verdict = ""
        for rank, theirs in enumerate(self._collect(what, own, seconds)):
            verdict = verdict or difference(rank, own, theirs)
        if verdict := self.share(f"{what} verdict", verdict, seconds):
            raise RequestError(verdict)

    def share(self, what: str, value: Any, seconds: float) -> Any:
        """Rank 0's JSON value, on all ranks."""
        if not self.several:
            return value
        key = self._occasion(what)
        if self.first:
            self.put(key, json.dumps(value, default=float))
        return json.loads(self.wait(key, 0, seconds))

    def _collect(self, what: str, value: Any, seconds: float) -> list[Any]:
        """On rank 0 the values of all ranks; on others nothing, after theirs is written."""
        key = self._occasion(what)
        self.put(f"{key}/{self.index}", json.dumps(value))
        others = range(self.count) if self.first else ()
        return [json.loads(self.wait(f"{key}/{rank}", rank, seconds)) for rank in others]

    def _occasion(self, what: str) -> str:
        self._uses[what] = self._uses.get(what, 0) + 1
        return f"{what}/{self._uses[what]}"


def difference(rank: int, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """One line about the first item in which a rank differs from rank 0, or nothing."""
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            return (
                f"rank {rank} has {name}={theirs.get(name)!r} where rank 0 has {ours.get(name)!r}; "
                "start all ranks with the same command, code, libraries and kind of machine"
            )
    return ""


def connect(address: str) -> socket.socket:
    """A connection to "host:port", within two seconds.

    Raises:
      OSError: if there is none.
    """
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host.strip("[]"), int(port)), timeout=2)
