"""Where a run is, for whoever watches it: heartbeats, the watchdog, the last words of a run that hangs."""

import dataclasses
import time
from collections.abc import Callable
from typing import Literal

Name = Literal["start", "data", "compile", "step", "evaluate", "save", "end"]


@dataclasses.dataclass(frozen=True)
class Phase:
    """What a process does at the moment.

    Attributes:
      name: "compile" is the first step of a process, which traces and compiles; "step" dispatches a step and fetches
        the metrics of the one before, so a collective that never ends is in it too.
      step: the update that is being made, or that was the last one (evaluate, save).
      since: `time.monotonic()` when it began.
    """

    name: Name
    step: int
    since: float

    def __str__(self) -> str:
        return f"{self.name} at step {self.step}"


class Phases:
    """The phase of this process. Entering one costs a microsecond; any thread may read `current`.

    Args:
      watchers: called with each phase as it begins, in the thread that enters it.
    """

    def __init__(self, *watchers: Callable[[Phase], None]):
        self._watchers = watchers
        self.current = Phase("start", 0, time.monotonic())

    def enter(self, name: Name, step: int) -> None:
        """Says what comes next."""
        self.current = Phase(name, step, time.monotonic())
        for watcher in self._watchers:
            watcher(self.current)
