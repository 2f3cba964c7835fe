"""A cell on a cluster: a process of its own under the one that the scheduler started, which passes on the wish to end.

The scheduler's process needs Python, the scheduler's library and the shared folder; only the cell's imports JAX.
"""

import os
import signal
import subprocess
from pathlib import Path

from ablax.sweeps.launchers import PREEMPTED, Job
from ablax.sweeps.local import command_of, environment_of

POLL_SECONDS = 0.2
"""How often the process is looked at: a scheduler may interrupt Python without waking a wait."""


class Task:
    """Runs a job once.

    Args:
      cores: how many it may compute on, where the scheduler confines nobody; None for all that it sees. Sums depend on
        their number in the last bits.
      folder: where it runs, if there is such a folder on this machine.
    """

    def __init__(self, job: Job, cores: int | None = None, folder: Path | None = None):
        self._job, self._cores, self._folder = job, cores, folder
        self._process: subprocess.Popen | None = None
        self._asked = self._passed_on = False

    def run(self) -> int:
        """Runs the job until it has ended.

        `ask`, from a signal's handler, and KeyboardInterrupt let it save and end first.

        Returns:
          Its exit code, negative for a signal's number; `PREEMPTED` also if it was asked before it could save.
        """
        try:
            self._process = self._start()
        except KeyboardInterrupt:
            return PREEMPTED
        while True:
            try:
                if self._asked:  # also before there was a process to ask
                    self._pass_on()
                code = self._process.wait(POLL_SECONDS)
                return PREEMPTED if self._asked and code == -signal.SIGTERM else code
            except subprocess.TimeoutExpired:
                pass
            except KeyboardInterrupt:
                self._asked = True

    def ask(self) -> None:
        """Asks it to save and end."""
        self._asked = True
        if self._process is not None:
            self._pass_on()

    def _pass_on(self) -> None:
        """Once: a second signal would end the process before it has saved."""
        if not self._passed_on and self._process is not None:
            self._passed_on = True
            self._process.send_signal(signal.SIGTERM)

    def _start(self) -> subprocess.Popen:
        environment = environment_of(self._job)
        if self._cores is not None:
            environment["NPROC"] = str(self._cores)  # the size of XLA's thread pools
        self._job.log.parent.mkdir(parents=True, exist_ok=True)
        with self._job.log.open("ab") as log:
            return subprocess.Popen(
                [*command_of(self._job), f"--parent={os.getpid()}"],
                env=environment,
                cwd=self._folder if self._folder and self._folder.is_dir() else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_ignore,
            )


def _ignore() -> None:
    """Schedulers may send their own signal to the whole tree of processes, and it ends who does not know it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
