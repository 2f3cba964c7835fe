"""Cells as tasks of a Ray cluster that runs already. Its nodes see the sweep's folder under the same path."""

import dataclasses
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any

from ablax.config import RequestError
from ablax.sweeps.launchers import PREEMPTED, Job

MOST = 1000
"""Tasks given to Ray at once."""
CONNECT_SECONDS = 10.0


class RayTasks:
    """Gives each job to Ray as a task, which is never tried again by Ray: the controller does that.

    If the controller dies, Ray ends its tasks, and a second controller goes on from what they saved.

    Args:
      address: of the cluster, or None for the one that Ray finds (`RAY_ADDRESS`, or one on this machine).
      cores: CPUs of each cell.
      gpus: of each cell; None for one, where the cluster has any and `platform` is not `cpu`.
      most: how many tasks Ray has at once.

    Raises:
      RequestError: if Ray or its cluster is missing, or a cell needs more than any node of it has.
    """

    prepares = True

    def __init__(
        self,
        address: str | None = None,
        cores: int = 1,
        gpus: int | None = None,
        platform: str | None = None,
        most: int | None = None,
    ):
        self.capacity = min(most or MOST, MOST)
        self._ray = _connect(address)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if gpus is None:
            gpus = int(platform != "cpu" and any(node.get("GPU") for node in nodes))
        if not any(node.get("CPU", 0) >= cores and node.get("GPU", 0) >= gpus for node in nodes):
            self.close()
            raise RequestError(
                f"--launcher=ray: no node of the cluster has {cores} CPUs and {gpus} GPUs; lower --cores_per_cell or "
                "--gpus_per_cell"
            )
        self._cores = cores
        options = {"num_cpus": cores, "num_gpus": gpus, "max_retries": 0}
        self._task = self._ray.remote(**options)(_alone())
        self._running: dict[str, Any] = {}

    def start(self, jobs: Sequence[Job]) -> None:
        """See `Launcher`."""
        for job in jobs:
            fields = dataclasses.asdict(job)
            self._running[job.folder] = self._task.remote(fields, self._cores, os.getcwd())

    def ended(self) -> dict[str, int]:
        """See `Launcher`."""
        if not self._running:
            return {}
        refs = list(self._running.values())
        done, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        folders = {ref: folder for folder, ref in self._running.items()}
        codes = {folders[ref]: self._code(ref) for ref in done}
        for folder in codes:
            del self._running[folder]
        return codes

    def _code(self, ref: Any) -> int:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.TaskCancelledError:  # before it ran
            return PREEMPTED
        except errors.RayTaskError as error:
            raise RequestError(
                f"--launcher=ray: a node cannot start cells: {error.cause}"
            ) from error
        except errors.RayError:  # its node, or process, is gone
            return -signal.SIGKILL

    def stop(self) -> None:
        """See `Launcher`."""
        for ref in self._running.values():
            self._ray.cancel(ref, force=False, recursive=False)

    def close(self) -> None:
        """Leaves the cluster; Ray ends what still runs."""
        self._ray.shutdown()


def _connect(address: str | None) -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise RequestError("--launcher=ray needs ray; pip install 'ablax[sweeps]'") from None
    host, _, port = (address or os.environ.get("RAY_ADDRESS", "")).rpartition(":")
    try:
        if port.isdecimal() and "://" not in host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise RequestError(
            f"--ray_address={address or 'auto'}: no Ray cluster answers ({str(error).splitlines()[0]}); start one with "
            "`ray start --head`"
        ) from None
    return ray


def _alone() -> Callable[[dict[str, Any], int, str], int]:
    """What Ray's task does. Ray sends functions that were made in functions whole, so a node needs no Ablax."""

    def work(fields: dict[str, Any], cores: int, folder: str) -> int:
        import pathlib
        import sys

        sys.path.insert(0, str(fields["code"]))
        from ablax.sweeps.launchers import Job
        from ablax.sweeps.task import Task

        return Task(Job(**fields), cores, pathlib.Path(folder)).run()

    return work
