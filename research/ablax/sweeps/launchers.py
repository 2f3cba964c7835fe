"""Where cells run. A launcher starts jobs and tells which have ended; what became of them, their records say."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

LAUNCHERS = {
    "local": "ablax.sweeps.local:Local",
    "inline": "ablax.sweeps.inline:Inline",
    "slurm": "ablax.sweeps.slurm_arrays:SlurmArrays",
    "ray": "ablax.sweeps.ray_tasks:RayTasks",
}
"""Name -> class; a module is imported only when its launcher is asked for."""
RETRIES = 2
"""How many times more a cell is tried that fails for a reason that may pass."""
DONE, FAILED, REFUSED, TAKEN, PREEMPTED = 0, 1, 2, 3, 75
"""Exit codes of a job (see `ablax.commands.output`)."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell as a launcher sees it.

    Attributes:
      folder: the cell's name.
      sweep: the sweep's folder, which the job must see under this path.
      command: arguments for `python -P -m ablax.cli`.
      code: folder for PYTHONPATH.
      log: file for what it prints.
      program: equal for cells that share one compiled program.
      mates: other cells that its process trains with it, as one program, if nobody runs them.
    """

    folder: str
    sweep: Path
    command: tuple[str, ...]
    code: Path
    log: Path
    program: str
    mates: tuple[str, ...] = ()

    def with_mates(self, mates: Sequence[str]) -> "Job":
        """The job as it is started: of its mates, those that still wait."""
        flags = (f"--mate={mate}" for mate in mates)
        return dataclasses.replace(self, command=(*self.command, *flags), mates=tuple(mates))


class Launcher(Protocol):
    """Something that runs jobs.

    Attributes:
      capacity: how many jobs it takes at once.
      prepares: whether data must be ready before its jobs start.
    """

    capacity: int
    prepares: bool

    def start(self, jobs: Sequence[Job]) -> None:
        """Starts jobs, no more than it has room for."""

    def ended(self) -> dict[str, int]:
        """Folder -> exit code of the jobs that ended since the last call; that of a killed one is negative."""
        ...

    def stop(self) -> None:
        """Asks all jobs to save and end; `ended` will tell when they have."""

    def close(self) -> None:
        """Frees what it holds; jobs that still run are left or ended."""
