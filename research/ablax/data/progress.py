"""What people see while documents are tokenised, by this process or by another that it waits for."""

import time
from collections.abc import Callable

EVERY_SECONDS = 5.0

Progress = Callable[[str, int, int], None]


def told(
    say: Callable[[str], None],
    every_seconds: float = EVERY_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Progress:
    """Progress in lines, which terminals, notebooks and the logs of a cluster show alike.

    Args:
      say: takes a line.
      every_seconds: between two lines about the same work.
      clock: seconds.

    Returns:
      A function of (what, done, total) documents.
    """
    began: dict[str, float] = {}
    said: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        now = clock()
        first = began.setdefault(what, now)
        if done == total:
            if what in said:
                say(f"{what}: {total:,} documents in {now - first:.1f} s")
        elif now - said.setdefault(what, now) >= every_seconds:
            said[what] = now
            left = (now - first) * (total - done) / done if done else None
            about = "" if left is None else f", about {left:.0f} s left"
            say(f"{what}: {done:,} of {total:,} documents ({done / total:.0%}){about}")

    return report
