"""Several processes that are one run: start-up, the words they exchange, agreement, and leaving together.

Words travel through the key-value store of `jax.distributed`, which needs no device, no compiled program and no shared
file system. Process 0 holds it. A process that is alone has the same interface and nobody to ask.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import jax

from ablax.cluster import COORDINATOR, Cluster
from ablax.config import RequestError
from ablax.run import Preempted, RunFailed

START_SECONDS = 300
POLL_SECONDS = 0.5
LINGER_SECONDS = 3.0  # how long process 0 keeps the store open for the last words
_FAILED = "failed"


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
    """

    def __init__(self, index: int = 0, count: int = 1, client: Any = None, coordinator: str = ""):
        self.index, self.count, self._client, self._coordinator = index, count, client, coordinator
        self._uses: dict[str, int] = {}

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
        self._client.key_value_set(f"ablax/{key}", value, allow_overwrite=True)

    def take(self, key: str) -> str | None:
        """A word, or None if nobody has written it. Raises what the store raises when it is gone."""
        try:
            return self._client.key_value_try_get(f"ablax/{key}")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def all(self, folder: str) -> dict[int, str]:
        """Rank -> its word under `folder/rank`."""
        found = self._client.key_value_dir_get(f"ablax/{folder}/")
        return {int(key.rsplit("/", 1)[1]): value for key, value in found}

    def wait(self, key: str, rank: int, seconds: float) -> str:
        """A word, as soon as `rank` has written it.

        Raises:
          RequestError, RankFailed: if a rank fails first, or the word does not come in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self._client.blocking_key_value_get(f"ablax/{key}", int(POLL_SECONDS * 1000))
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
                _connect(self._coordinator).close()
            except ConnectionRefusedError:
                return False
        return True

    def fail(self, error: BaseException) -> None:
        """Tells the others why this rank ends the run, unless a rank has done so before."""
        line = " ".join(str(error).split("\n"))[:1000] or type(error).__name__
        if not isinstance(error, tuple(ENDS)) and not isinstance(error, RunFailed):
            line = f"{type(error).__name__}: {line}"
        word = json.dumps([self.index, line, code_of(error)])
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"ablax/{_FAILED}", word)

    def failure(self) -> Exception | None:
        """What ended the run, if something did."""
        word = self.take(_FAILED) if self.several else None
        if word is None:
            return None
        rank, line, code = json.loads(word)
        told = line if line.startswith("rank ") else f"rank {rank}: {line}"
        kind = next((kind for kind, c in ENDS.items() if c == code), RankFailed)
        return kind(told) if issubclass(kind, Exception) else RankFailed(told)

    def leave(self) -> None:
        """Process 0 keeps the store until all have seen how the run ended, or for three seconds."""
        deadline = time.monotonic() + LINGER_SECONDS
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.put(f"left/{self.index}", "")
            while self.first and time.monotonic() < deadline:
                if len(self.all("left")) == self.count:
                    return
                time.sleep(0.05)

    def agree(self, what: str, items: Mapping[str, Any], seconds: float = START_SECONDS) -> None:
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


def ranks() -> Ranks:
    """This process among those that `start` joined; alone without it."""
    from jax._src import distributed  # JAX has no public name for its client

    state = distributed.global_state
    if state.client is None:
        return Ranks()
    return Ranks(
        state.process_id, state.num_processes, state.client, state.coordinator_address or ""
    )


def start(cluster: Cluster | None, silence: float, seconds: float = START_SECONDS) -> None:
    """Joins the processes of a cluster; must come before JAX's first array.

    Args:
      cluster: from `ablax.cluster.find`; None leaves this process alone.
      silence: seconds without a sign of life after which a rank counts as dead. JAX's own limit, which ends processes
        with many lines, is set to twice that.
      seconds: how long to wait for the others.

    Raises:
      RequestError: if process 0 cannot be reached or its port is taken, or others do not come.
    """
    if cluster is None:
        return
    _reach(cluster, seconds)
    # JAX would take SIGTERM for itself; the run handles it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.process_count,
            cluster.process_id,
            local_device_ids=cluster.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, int(seconds)),
            heartbeat_timeout_seconds=max(10, int(2 * silence)),
            shutdown_timeout_seconds=max(10, int(2 * silence)),
        )
    except (RuntimeError, ValueError) as error:
        said = str(error).split("\n")[0][:200]
        raise RequestError(
            f"process {cluster.process_id} of {cluster.process_count} ({cluster.launcher}) could not join the run at "
            f"{cluster.coordinator} within {seconds:.0f} s ({said}); check that all {cluster.process_count} were "
            f"started, and {COORDINATOR}"
        ) from error
    _delay_abort()


def _reach(cluster: Cluster, seconds: float) -> None:
    """Process 0's port can be bound, or another's connection is answered.

    JAX ends the process without an exception where it fails at either.
    """
    port = cluster.coordinator.rsplit(":", 1)[1]
    if cluster.process_id == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                raise RequestError(
                    f"port {port} of the coordinator {cluster.coordinator} cannot be used ({error.strerror}); "
                    f"another run may hold it: choose another {COORDINATOR} or JAX_COORDINATOR_PORT"
                ) from error
        return
    deadline, why = time.monotonic() + seconds, "no answer"
    while time.monotonic() < deadline:
        try:
            _connect(cluster.coordinator).close()
            return
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(0.2)
    raise RequestError(
        f"process {cluster.process_id} of {cluster.process_count} ({cluster.launcher}) cannot reach process 0 at "
        f"{cluster.coordinator} after {seconds:.0f} s ({why}); check that it was started, {COORDINATOR} and firewalls"
    )


def _connect(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host.strip("[]"), int(port)), timeout=2)


def _delay_abort() -> None:
    """Holds `abort` back for six seconds, so that the heartbeat can say which rank is gone.

    When process 0 dies, JAX aborts every other process within a millisecond, and takes no Python callback instead
    (it ends in std::bad_cast). The C library's `sleep` is the handler: its argument is the signal's number, 6.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def leave(code: int) -> None:
    """Ends a process that failed beside others. Alone it does nothing.

    At the exit of the interpreter JAX would wait for ranks that may not be there, and abort if they are not.
    """
    us = ranks()
    if us.several:
        us.leave()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(line: str, code: int) -> NoReturn:
    """Ends this process at once, from any thread: its main thread may never come back from a collective."""
    sys.stdout.flush()
    print(f"ablax: {line}", file=sys.stderr, flush=True)
    os._exit(code)
