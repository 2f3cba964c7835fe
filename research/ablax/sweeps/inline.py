"""Cells in this process, one after another: for notebooks, classes that have no module, and debugging."""

from collections.abc import Callable, Sequence

from ablax.sweeps.launchers import Job


class Inline:
    """Runs each job while it is started.

    Args:
      work: runs the cell of this folder and returns an exit code.
    """

    capacity, prepares = 1, False

    def __init__(self, work: Callable[[str], int]):
        self._work = work
        self._codes: dict[str, int] = {}

    def start(self, jobs: Sequence[Job]) -> None:
        """Runs the jobs.

        Raises:
          Preempted, KeyboardInterrupt: if a run was stopped.
        """
        for job in jobs:
            self._codes[job.folder] = self._work(job.folder)

    def ended(self) -> dict[str, int]:
        """See `Launcher`."""
        codes, self._codes = self._codes, {}
        return codes

    def stop(self) -> None:
        """Nothing runs between two calls."""

    def close(self) -> None:
        """Nothing is held."""
