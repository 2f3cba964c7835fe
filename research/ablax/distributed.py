"""Several processes that are one run: they join `jax.distributed`, and leave it together."""

import atexit
import contextlib
import ctypes
import functools
import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

import jax

from ablax.cluster import COORDINATOR, Cluster
from ablax.config import RequestError
from ablax.ranks import LINGER_SECONDS, Ranks, code_of, connect

START_SECONDS = 300.0


def ranks() -> Ranks:
    """This process among those that `start` joined; alone without it."""
    from jax._src import distributed  # JAX has no public name for its client

    state = distributed.global_state
    if state.client is None:
        return Ranks()
    return _joined(
        state.process_id, state.num_processes, state.client, state.coordinator_address or ""
    )


_joined = functools.cache(Ranks)  # it counts what was said


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
    _keep_stdout_clean()
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
    over = threading.Event()
    thread = threading.Thread(target=_follow, args=(ranks(), over), daemon=True)
    thread.start()
    atexit.register(lambda: (over.set(), thread.join()))  # before JAX closes what it asks


def _follow(us: Ranks, over: threading.Event) -> None:
    """Ends this process when another has ended for good: it may wait for that one inside of JAX, for its devices."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while not over.wait(1.0) and not us.ended:
            if failure := us.gone():
                us.leave()
                end(str(failure), code_of(failure))


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
            connect(cluster.coordinator).close()
            return
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(0.2)
    raise RequestError(
        f"process {cluster.process_id} of {cluster.process_count} ({cluster.launcher}) cannot reach process 0 at "
        f"{cluster.coordinator} after {seconds:.0f} s ({why}); check that it was started, {COORDINATOR} and firewalls"
    )


def _keep_stdout_clean() -> None:
    """Results go to stdout, but gloo greets there too: what the C half of the process prints goes to stderr."""
    with contextlib.suppress(OSError, ValueError):  # a stdout that is closed, or is no file
        sys.stdout.flush()
        own = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        sys.stdout = os.fdopen(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


def _delay_abort() -> None:
    """Holds `abort` back for six seconds, so that the heartbeat can say which rank is gone.

    When process 0 dies, JAX aborts every other process within a millisecond, and takes no Python callback instead
    (it ends in std::bad_cast). The C library's `sleep` is the handler: its argument is the signal's number, 6.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def leave(error: BaseException, code: int) -> None:
    """Ends a process that failed beside others, which it tells. Alone it does nothing.

    At the exit of the interpreter JAX would wait for ranks that may not be there, and abort if they are not.
    """
    us = ranks()
    if us.several:

        def tell() -> None:
            us.fail(error, for_good=True)
            us.leave()

        # Process 0 may have failed in the same moment, and be gone: its store would not answer before JAX's abort.
        telling = threading.Thread(target=tell, daemon=True)
        telling.start()
        telling.join(LINGER_SECONDS + 1)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(line: str, code: int) -> NoReturn:
    """Ends this process at once, from any thread: its main thread may never come back from a collective."""
    sys.stdout.flush()
    print(f"ablax: {line}", file=sys.stderr, flush=True)
    os._exit(code)
