"""The controller of a sweep: what is to be run, what runs, what became of it. All it knows stands in the folder.

Any number of controllers may work on one folder, die and be started again: a cell is run by who holds its lease, and
its record, written once, says how it ended.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablax.lease import Lease, Watched
from ablax.run import RunFolder, write_json
from ablax.sweeps.cells import last_lines, lease_path, log_path, read_record, record_path
from ablax.sweeps.launchers import DONE, PREEMPTED, REFUSED, TAKEN, Job, Launcher

POLL_SECONDS = 0.2
LOOK_SECONDS = 1.0
"""How often cells that others run are looked at."""


@dataclasses.dataclass
class State:
    """Where a cell is.

    Attributes:
      status: `waiting`, `unneeded` (no look or halving wants it), `running`, `elsewhere` (another controller runs it),
        `finished`, `skipped` (finished before), `failed`, `interrupted`.
      attempts: starts by this controller.
      since: `time.monotonic()` when it was started last.
      begun: starts that its record counted then.
      error: why it failed.
      leader: the cell with which it trains as one program, in that one's process.
      programs: how many compiled programs it made and how many it found.
    """

    status: str = "waiting"
    attempts: int = 0
    since: float = 0.0
    begun: int = 0
    error: str = ""
    leader: str = ""
    programs: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Controller:
    """Runs jobs until each has ended.

    Args:
      sweep: the folder.
      jobs: in the order in which they should run.
      launcher: where.
      retries: how many times more a cell is tried that failed for a reason that may pass.
      say: takes a line of talk.
      show: called with the states whenever it looked at them.
      held: which cells are not wanted, as things stand; asked whenever a cell has ended.
    """

    def __init__(
        self,
        sweep: Path,
        jobs: Sequence[Job],
        launcher: Launcher,
        retries: int,
        say: Callable[[str], None],
        show: Callable[[Mapping[str, State]], None] = lambda states: None,
        held: Callable[[], set[str]] = set,
    ):
        self.sweep, self.launcher, self.retries = sweep, launcher, retries
        self.jobs = {job.folder: job for job in jobs}
        self.states = {job.folder: State() for job in jobs}
        self.say, self.show, self.held = say, show, held
        self._watched = {job.folder: Watched(lease_path(sweep, job.folder)) for job in jobs}
        self._looked = -LOOK_SECONDS
        self._steps: dict[str, int] = {}

    def run(self, asked: Callable[[], str | None]) -> str | None:
        """Runs what is not finished.

        Args:
          asked: why somebody wants the sweep to end, or None.

        Returns:
          None when all cells ended; the reason if it was stopped, when those that ran have saved.
        """
        for folder, state in self.states.items():
            if self._record(folder)["status"] == "finished":
                state.status = "skipped"
                self.say(f"{folder}: already finished")
        self._hold()
        while self._open():
            if reason := asked():
                self._stop()
                return reason
            self._reap()
            self._look()
            self._fill()
            self.show(self.states)
            if self._open():
                time.sleep(POLL_SECONDS)
        return None

    def _hold(self) -> None:
        """Takes what is not wanted out of the queue, and puts back what now is."""
        held = self.held()
        for folder, state in self.states.items():
            if state.status in ("waiting", "unneeded"):
                state.status = "unneeded" if folder in held else "waiting"

    def _of(self, status: str) -> list[str]:
        return [folder for folder, state in self.states.items() if state.status == status]

    def _open(self) -> bool:
        return any(self._of(status) for status in ("waiting", "running", "elsewhere"))

    def _record(self, folder: str) -> dict[str, Any]:
        return read_record(self.sweep, folder)

    def _reap(self) -> None:
        if ended := self.launcher.ended():
            for folder, code in ended.items():
                self._ended(folder, code)
            self._hold()

    def _ended(self, folder: str, code: int) -> None:
        """Settles what became of a job of ours."""
        state, record = self.states[folder], self._record(folder)
        if record["status"] == "failed" and record.get("attempts", 0) == state.begun:
            # It ended before it could begin: what is there is of an earlier start.
            record = dict[str, Any](status="missing")
        if code == TAKEN:
            state.status = "elsewhere"
        elif record["status"] == "finished":
            state.status, state.programs = "finished", record.get("programs", {})
            self.say(f"{folder}: finished after {record.get('seconds', 0):.0f} s of training")
        elif code == PREEMPTED:
            self._wait(folder)
        elif code == DONE and record["status"] == "paused":
            self._wait(folder)  # until it is promoted, if ever
        elif record["status"] == "failed" and not record.get("again", True):
            self._fail(folder, record["error"])
        elif code == REFUSED:  # before there was a record to write
            self._fail(folder, "".join(last_lines(self.sweep, folder)[-1:]), write=True)
        else:
            error = record.get("error") or f"its process ended with {_said(code)}"
            if state.attempts > self.retries and not self._advanced(folder):
                self._fail(folder, error, write=True)
            else:
                self.say(f"{folder}: {error}; it is tried again")
                self._wait(folder)

    def _advanced(self, folder: str) -> bool:
        """Whether a cell is further than at its last end: what makes progress is not given up."""
        run = RunFolder(self.sweep / folder)
        step = max((int(p.name) for p in run.checkpoints.glob("*") if p.name.isdigit()), default=0)
        before, self._steps[folder] = self._steps.get(folder, 0), step
        return step > before

    def _wait(self, folder: str) -> None:
        """Back into the queue, at its end."""
        self.states[folder].status = "waiting"
        self.jobs[folder] = self.jobs.pop(folder)

    def _fail(self, folder: str, error: str, write: bool = False) -> None:
        state = self.states[folder]
        state.status, state.error = "failed", error
        if write and (lease := Lease.claim(lease_path(self.sweep, folder))):
            with lease:
                lines = {"error": error, "last_lines": "\n".join(last_lines(self.sweep, folder))}
                record = self._record(folder) | {"status": "failed", **lines}
                write_json(record_path(self.sweep, folder), record)
        self.say(f"{folder} failed: {error}; see {log_path(self.sweep, folder)}")

    def _look(self) -> None:
        """What others have done since the last look."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for folder in self._of("elsewhere"):
            record, state = self._record(folder), self.states[folder]
            led = state.leader and self.states[state.leader].status == "running"
            if led or self._watched[folder].holder() is not None:
                continue
            if record["status"] == "finished":
                state.status, state.programs = "finished", record.get("programs", {})
                by = f"with {state.leader}" if state.leader else "by another controller"
                self.say(f"{folder}: finished {by}")
            elif record["status"] == "failed" and not (state.leader and record.get("again")):
                state.status, state.error = "failed", record["error"]
                self.say(f"{folder} failed: {record['error']}")
            else:
                state.status, state.leader = "waiting", ""
            self._hold()

    def _fill(self) -> None:
        """Starts as many jobs as there is room for."""
        chosen: list[Job] = []
        waiting = [f for f in self.jobs if self.states[f].status == "waiting"]
        while waiting and len(self._of("running")) < self.launcher.capacity:
            folder = waiting.pop(self._next(waiting))
            state = self.states[folder]
            held = self._watched[folder].holder() is not None
            if held or self._record(folder)["status"] == "finished":
                state.status = "elsewhere"  # `_look` settles it, and asks what now is wanted
                continue
            state.status, state.since = "running", time.monotonic()
            state.attempts += 1
            state.begun = self._record(folder).get("attempts", 0)
            mates = tuple(mate for mate in self.jobs[folder].mates if mate in waiting)
            for mate in mates:
                waiting.remove(mate)
                self.states[mate].status, self.states[mate].leader = "elsewhere", folder
            chosen.append(self.jobs[folder].with_mates(mates))
        if chosen:
            self.launcher.start(chosen)

    def _next(self, waiting: Sequence[str]) -> int:
        """The first job whose program nobody is compiling at the moment, or the first."""
        cold = {
            self.jobs[folder].program
            for folder in self._of("running")
            if not RunFolder(self.sweep / folder).metrics_file.exists()
        }
        found = (i for i, f in enumerate(waiting) if self.jobs[f].program not in cold)
        return next(found, 0)

    def _stop(self) -> None:
        """Lets what runs save and end."""
        self.launcher.stop()
        while self._of("running"):
            for folder, code in self.launcher.ended().items():
                done = self._record(folder)["status"] == "finished"
                self.states[folder].status = "finished" if done else "interrupted"
                if not done:
                    self.say(f"{folder}: stopped ({_said(code)}); it goes on from what it saved")
            self.show(self.states)
            time.sleep(POLL_SECONDS)


def _said(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
