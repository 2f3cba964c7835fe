"""Cells as arrays of SLURM, through submitit. A cell that SLURM preempts saves, and SLURM starts it again.

What submitit keeps of each array (script, jobs, logs of its own) lies in the sweep's folder under `.slurm`; the nodes
see the sweep's folder, and the Python that called, under the same paths.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablax.config import RequestError
from ablax.sweeps.launchers import PREEMPTED, Job
from ablax.sweeps.task import Task

FOLDER = ".slurm"
MOST = 1000
"""Jobs of one array; SLURM as it comes takes 1,001."""
DEFAULTS = {"time": "24:00:00", "signal_delay_s": 150, "cpus_per_task": 1}
ONE = ("nodes", "tasks_per_node", "ntasks_per_node")
LOOK_SECONDS = 2.0
LOST_SECONDS = 20.0
"""After this long out of SLURM's queue, a job that left no exit code is lost: shared folders show files late."""
STOP = signal.SIGUSR1
"""Save, end, and do not start again."""
PREEMPT = (signal.SIGTERM, signal.SIGUSR2)
"""Save, end, and start again: SLURM's own signal, and the one that it is told to send before a time limit."""
LOST = -signal.SIGKILL


class SlurmArrays:
    """Submits the jobs of each call as one array.

    If the controller dies its jobs stay in the queue; a second one's find a cell taken, or finished, and end.

    Args:
      sweep: the sweep's folder.
      parameters: of sbatch, with `_` for `-`: `partition`, `time`, `cpus_per_task`, `gpus_per_node`, `mem` (GB) ...
      most: how many jobs are in the queue at once, or None for as many as an array takes.

    Raises:
      RequestError: if submitit or SLURM is missing, or a parameter is wrong.
    """

    prepares = True

    def __init__(self, sweep: Path, parameters: Mapping[str, Any], most: int | None = None):
        self.capacity = min(most or MOST, MOST)
        self._executor = _executor(sweep, parameters)
        self._cores = self._executor.parameters.get("cpus_per_task")
        self._setup = self._executor.parameters.get("setup") or []
        self._running: dict[str, Any] = {}
        self._missed: dict[str, float] = {}
        self._stopping = False
        self._looked = 0.0

    def start(self, jobs: Sequence[Job]) -> None:
        """See `Launcher`.

        Raises:
          RequestError: if SLURM refuses them.
        """
        from submitit.core.utils import FailedJobError

        # The job's Python needs this module before it can do anything.
        path = f"export PYTHONPATH={shlex.quote(str(jobs[0].code))}${{PYTHONPATH:+:$PYTHONPATH}}"
        self._executor.update_parameters(setup=[*self._setup, path])
        try:
            started = self._executor.map_array(_work, jobs, [self._cores] * len(jobs))
        except FailedJobError as error:
            raise RequestError(f"--launcher=slurm: sbatch refused: {_last_line(error)}") from None
        self._running.update({job.folder: one for job, one in zip(jobs, started, strict=True)})

    def ended(self) -> dict[str, int]:
        """See `Launcher`. A job that SLURM starts again has not ended."""
        if not self._running or time.monotonic() - self._looked < LOOK_SECONDS:
            return {}
        queued = _queued()
        self._looked = time.monotonic()
        codes = {}
        for folder, job in list(self._running.items()):
            if (code := self._code(job, queued)) is not None:
                codes[folder] = code
                del self._running[folder]
        if self._stopping:  # one that was just being started again was neither running nor waiting
            self._signal()
        return codes

    def _code(self, job: Any, queued: set[str] | None) -> int | None:
        if job.paths.result_pickle.exists():
            return 1 if job.exception() else job.result()
        if queued is None or job.job_id in queued:
            self._missed.pop(job.job_id, None)
            return None
        if self._stopping:
            return PREEMPTED
        since = self._missed.setdefault(job.job_id, time.monotonic())
        return LOST if time.monotonic() - since > LOST_SECONDS else None

    def stop(self) -> None:
        """See `Launcher`."""
        self._stopping = True
        self._signal()

    def _signal(self) -> None:
        if numbers := [job.job_id for job in self._running.values()]:
            _call("scancel", "--quiet", "--state=PENDING", *numbers)
            _call("scancel", "--quiet", f"--signal={STOP.name}", *numbers)

    def close(self) -> None:
        """Jobs that still run go on."""


def parameters_of(texts: Iterable[str]) -> dict[str, Any]:
    """The parameters that `KEY=VALUE` texts mean; numbers are numbers.

    >>> parameters_of(["partition=gpu", "gpus_per_node=1"])
    {'partition': 'gpu', 'gpus_per_node': 1}

    Raises:
      RequestError: if one has no `=`, or would make more of a cell than one task.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.lstrip("-").replace("-", "_")
        if not key or not equals:
            raise RequestError(f"--slurm={text} must be KEY=VALUE, such as partition=gpu")
        if key in ONE:
            raise RequestError(f"--slurm={text}: a cell is one task; leave {key} out")
        found[key] = int(value) if value.isdecimal() else value
    return found


def _executor(sweep: Path, parameters: Mapping[str, Any]) -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise RequestError("--launcher=slurm needs submitit; pip install 'ablax[sweeps]'") from None
    try:
        executor = submitit.SlurmExecutor(sweep.expanduser().resolve() / FOLDER)
    except RuntimeError:
        raise RequestError(
            "--launcher=slurm: there is no srun here; call ablax sweep on a node that submits to SLURM"
        ) from None
    given = {"job_name": f"ablax-{sweep.name}", **DEFAULTS, **parameters}
    if isinstance(given.get("setup"), str):
        given["setup"] = [given["setup"]]
    known = executor._valid_parameters()
    more = {key.replace("_", "-"): given.pop(key) for key in list(given) if key not in known}
    executor.update_parameters(**given, additional_parameters={"requeue": True, **more})
    return executor


def _queued() -> set[str] | None:
    """The jobs of this user that SLURM has not ended; None if it does not say."""
    shown = _call("squeue", "--me", "--array", "--noheader", "--format=%i")
    return None if shown is None else set(shown.split())


def _call(*command: str) -> str | None:
    """What a command of SLURM prints; None if it fails, as it does while SLURM's controller is busy."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]


def _work(job: Job, cores: int | None) -> int:
    """What SLURM's task does.

    Returns:
      The exit code of a cell that SLURM is not to start again.
    """
    task = Task(job, cores)
    got = []

    def ask(number: int, _: object) -> None:
        got.append(number)
        task.ask()

    for number in (*PREEMPT, STOP):  # submitit would start a cell again before it has saved
        signal.signal(number, ask)
    code = task.run()
    if code == PREEMPTED and STOP not in got:
        _requeue()
    return code


def _requeue() -> None:
    """Ends this task so that SLURM starts it again; returns if SLURM refuses.

    Only a job that was merely sent a signal is still `RUNNING`. Another is being queued again, or ended, by SLURM
    itself, and leaves no exit code: whether it is in the queue tells which.
    """
    number = os.environ["SLURM_JOB_ID"]
    shown = _call("scontrol", "--oneliner", "show", "job", number) or ""
    running = re.search(r"\bJobState=RUNNING\b", shown)
    if not running or _call("scontrol", "requeue", number) is not None:
        sys.exit(PREEMPTED)  # no Exception: submitit would take it for a result
