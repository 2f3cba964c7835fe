"""How long a run has taken."""

import time


class Stopwatch:
    """Seconds of a run over all its starts.

    Args:
      before: those of earlier starts.
    """

    def __init__(self, before: float):
        self._before, self._began = before, time.perf_counter()

    def seconds(self) -> float:
        """Until now."""
        return self._before + time.perf_counter() - self._began
