"""Signals that end a run at the next step, after it was saved."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def signals() -> Iterator[Callable[[], str | None]]:
    """Yields a function that says why the run should stop: SIGTERM, or Ctrl-C once (twice ends it at once).

    Outside the main thread no signal can be caught, and nothing asks.
    """
    reason: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    old = {int(number): signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: Any) -> None:
        if reason:
            signal.signal(number, old[number])
            signal.raise_signal(number)
        reason.append("stopped by Ctrl-C" if number == signal.SIGINT else "stopped by SIGTERM")

    for number in old:
        signal.signal(number, handle)
    try:
        yield lambda: reason[0] if reason else None
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
