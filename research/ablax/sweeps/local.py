"""A queue on this machine: a process for each cell, each on cores or GPUs of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from ablax.config import RequestError
from ablax.machine import probe
from ablax.sweeps.launchers import Job

LINGER_SECONDS = 5.0
"""After this long, a job that was asked to end a second time is killed."""


class Local:
    """Runs as many jobs at once as there are slots.

    A job's process has a group of its own, so Ctrl-C in a terminal reaches the controller alone, which lets the jobs
    save. If the controller dies, its jobs are told by the kernel (`ablax cell` asks for that), save and end.

    Args:
      slots: what each job may use, `{"cores": (0, 1), "gpus": ("0",)}`; see `slots_of`.
    """

    prepares = True

    def __init__(self, slots: Sequence[Mapping[str, Sequence]]):
        self.capacity = len(slots)
        self._free = list(slots)
        self._running: dict[str, tuple[subprocess.Popen, Mapping[str, Sequence]]] = {}

    def start(self, jobs: Sequence[Job]) -> None:
        """See `Launcher`."""
        for job in jobs:
            slot = self._free.pop(0)
            environment = environment_of(job)
            command = [*command_of(job), f"--parent={os.getpid()}"]
            if cores := slot.get("cores"):
                command.append(f"--cores={','.join(map(str, cores))}")
            if gpus := slot.get("gpus"):
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with job.log.open("ab") as log:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._running[job.folder] = process, slot

    def ended(self) -> dict[str, int]:
        """See `Launcher`."""
        codes = {}
        for folder, (process, slot) in list(self._running.items()):
            if (code := process.poll()) is not None:
                codes[folder] = code
                self._free.append(slot)
                del self._running[folder]
        return codes

    def stop(self) -> None:
        """See `Launcher`."""
        for process, _ in self._running.values():
            process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Ends what still runs."""
        self.stop()
        for process, _ in self._running.values():
            try:
                process.wait(LINGER_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def command_of(job: Job) -> tuple[str, ...]:
    """The command of a job. `-P`: the current folder must not come before the code that was kept."""
    return sys.executable, "-P", "-m", "ablax.cli", *job.command


def environment_of(job: Job) -> dict[str, str]:
    """The environment of a job: this process's, with the code that was kept before all other."""
    paths = [str(job.code), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def slots_of(
    cells: int,
    platform: str | None = None,
    cores_per_cell: int | None = None,
    gpus_per_cell: int | None = None,
    most: int | None = None,
) -> list[dict[str, tuple]]:
    """How this machine is divided.

    By default every cell has a GPU, where there are any, and else a core; fewer cells than cores have more each. How
    many cores a cell has is a function of machine and plan alone, as sums depend on it in their last bits.

    Args:
      cells: of the plan.
      platform: `cpu`, `cuda`, `tpu`, or None for what the machine has.
      most: how many cells run at once, or None for as many as there is room for.

    Raises:
      RequestError: if a cell would need more than there is, or another device.
    """
    for name, value in (
        ("cores_per_cell", cores_per_cell),
        ("gpus_per_cell", gpus_per_cell),
        ("parallel", most),
    ):
        if value is not None and value < 1:
            raise RequestError(f"--{name}={value} must be at least 1")
    machine = probe()
    cores = sorted(os.sched_getaffinity(0))
    kind = "cpu" if platform == "cpu" else machine.accelerator or "cpu"
    if platform not in (None, kind):
        hidden = " (CUDA_VISIBLE_DEVICES hides every GPU)" if machine.hidden else ""
        raise RequestError(
            f"--platform={platform}: this machine shows no such device{hidden}; run ablax doctor, or --platform=cpu"
        )
    if kind == "tpu":  # one process has all of them
        return [{"cores": tuple(cores)}]
    if kind == "cpu":
        if gpus_per_cell:
            raise RequestError(
                f"--gpus_per_cell={gpus_per_cell}: no GPU is used here; leave it out"
            )
        each = cores_per_cell or max(1, len(cores) // cells)
        groups = _groups(cores, each, "cores_per_cell")
        return [{"cores": group} for group in groups][:most]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(len(machine.gpus))] if chosen is None else chosen.split(",")
    groups = _groups(gpus, gpus_per_cell or 1, "gpus_per_cell")[:most]
    each = cores_per_cell or max(1, len(cores) // len(groups))
    shares = _groups(cores, each, "cores_per_cell")
    return [{"gpus": group, "cores": share} for group, share in zip(groups, shares, strict=False)]


def _groups(items: Sequence, each: int, name: str) -> list[tuple]:
    if each > len(items):
        raise RequestError(f"--{name}={each} is more than the {len(items)} there are; lower it")
    return [tuple(items[i : i + each]) for i in range(0, len(items) - each + 1, each)]
