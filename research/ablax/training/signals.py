"""Signals that ask a run to end: SIGTERM and SIGUSR1 of schedulers, Ctrl-C. It saves first, or is ended by a watchdog.

A Python handler runs in the main thread, between two bytecodes: not while a program is compiled or a file system hangs.
So the wish is noted by the handler and asked for between steps and batches (`Stop()`), waits that nothing else ends are
broken off by an exception (`Stop.breakable`), and what hangs outside Python is ended by a thread, which the C half of
Python's signal handling wakes at once.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from ablax.run import Preempted
from ablax.training.phases import Phases

REASONS = {
    int(signal.SIGTERM): "stopped by SIGTERM",
    int(signal.SIGUSR1): "stopped by SIGUSR1",
    int(signal.SIGINT): "stopped by Ctrl-C",
}
NOTHING_NEW = ("start", "compile")
"""Phases in which a process has made nothing that could be saved."""
SAME = 0.5
"""Seconds in which signals are one wish: a launcher and its scheduler may both deliver it."""
UNWIND = 5.0
"""Seconds in which Python should have left a phase in which there is nothing to save."""


class Stopped(KeyboardInterrupt):
    """Raised where a wait is broken off. Neither asyncio nor `except Exception` keeps it, as they would others."""


class Stop:
    """Whether somebody wants the run to end: called, it says why, or None.

    Attributes:
      until: the step at which the run is to pause, known before; None for none.
    """

    def __init__(self):
        self.until: int | None = None
        self.reason: str | None = None
        self._first, self._breakable = 0.0, True

    def __call__(self) -> str | None:
        """The reason."""
        return self.reason

    @contextlib.contextmanager
    def breakable(self, yes: bool) -> Iterator[None]:
        """Whether the wish breaks off what happens inside, at once, or waits until it is asked for.

        Raises:
          Stopped: inside, or on entry if the wish is older.
        """
        before, self._breakable = self._breakable, yes
        try:
            if yes and self.reason:
                raise Stopped(self.reason)
            yield
        finally:
            self._breakable = before

    def check(self) -> None:
        """Raises Stopped if there is a reason; for work that is broken off between two of its parts."""
        if reason := self():
            raise Stopped(reason)

    def ask(self, number: int, _: object = None) -> None:
        """Notes the wish; the handler of the signals."""
        now = time.monotonic()
        if self.reason and now - self._first >= SAME and number == signal.SIGINT:
            raise KeyboardInterrupt  # where a watchdog may not end the process: a notebook
        if self.reason is None:
            self.reason, self._first = REASONS[number], now
            if self._breakable:
                raise Stopped(self.reason)


@contextlib.contextmanager
def signals(phases: Phases, grace: float, stop: Stop | None = None) -> Iterator[Stop]:
    """Catches the signals while a run goes on; the first one makes its `Stop` true.

    Until the run says otherwise (`Stop.breakable`) there is nothing to save, and the signal ends the block.

    A second signal ends the process at once, with 128 + its number: a save that was going on is not committed, and
    the checkpoint before is untouched. In an interactive session Ctrl-C raises KeyboardInterrupt instead and nothing
    ends the process. Outside the main thread no signal can be caught, and nothing asks. Blocks may be nested: what
    came too late for the inner one to follow, the outer one follows.

    Args:
      phases: where the process is, for the watchdog's last words.
      grace: seconds after the first signal in which the block must end; then the process is ended with 1.
      stop: what the signals make true; a new one if None.

    Raises:
      Preempted: by SIGTERM and SIGUSR1 where there was nothing new to save.
      KeyboardInterrupt: by Ctrl-C there.
    """
    stop = Stop() if stop is None else stop
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = {number: signal.getsignal(number) for number in REASONS}
    with contextlib.ExitStack() as stack:
        if not hasattr(sys, "ps1"):
            stack.enter_context(_watchdog(phases, grace))
        stack.callback(lambda: [signal.signal(n, old) for n, old in handlers.items()])
        try:
            catch(stop)
            yield stop
        except Stopped as reason:
            if stop.reason == REASONS[signal.SIGINT]:
                raise KeyboardInterrupt from None
            raise Preempted(f"{reason} {_nothing_new(phases)}") from None
    outer = getattr(handlers[signal.SIGTERM], "__self__", None)
    if stop.reason and isinstance(outer, Stop):
        outer.ask(next(number for number, reason in REASONS.items() if reason == stop.reason))


def catch(stop: Stop) -> None:
    """Makes `stop` the receiver of the signals, from whoever took them: `jax.distributed.initialize` takes SIGTERM."""
    if threading.current_thread() is threading.main_thread():
        for number in REASONS:
            signal.signal(number, stop.ask)


def _nothing_new(phases: Phases) -> str:
    return f"in {phases.current}: nothing new to save; run the same command to go on"


@contextlib.contextmanager
def _watchdog(phases: Phases, grace: float) -> Iterator[None]:
    """A thread that ends the process by a second signal, or when the block has not ended within the grace time."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reader, phases, grace), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)


def _watch(reader: int, phases: Phases, grace: float) -> None:
    reason, first = "", 0.0
    while True:
        ready, _, _ = select.select([reader], [], [], 0.1 if reason else None)
        now = time.monotonic()
        if ready:
            numbers = os.read(reader, 64)
            if not numbers:  # the block has ended
                return
            for number in filter(REASONS.get, numbers):
                if not reason:
                    reason, first = REASONS[number], now
                elif now - first >= SAME:
                    _end(128 + number, f"{REASONS[number]} a second time: ended, not saved")
        if not reason:
            continue
        phase, waited = phases.current, now - max(first, phases.current.since)
        if phase.name in NOTHING_NEW and waited > min(UNWIND, grace):
            _end(75, f"{reason} {_nothing_new(phases)}")
        if now - first > grace:
            _end(1, f"{reason}, and after {grace:g} s still in {phase}: ended, not saved")


def _end(code: int, line: str) -> NoReturn:
    # Not by print: the thread that hangs may hold the lock of sys.stderr.
    os.write(2, f"ablax: {line}\n".encode())
    os._exit(code)
