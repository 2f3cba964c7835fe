"""Which launcher started this process, and as which of how many: flags, variables, Open MPI, SLURM, TPU, Kubernetes.

What JAX finds out itself (addresses under SLURM, Open MPI, Cloud TPU and Kubernetes) is asked of its own detection.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping

from ablax.config import RequestError

COORDINATOR, PROCESS_ID, PROCESS_COUNT = (
    "ABLAX_COORDINATOR",
    "ABLAX_PROCESS_ID",
    "ABLAX_PROCESS_COUNT",
)
FLAGS = {
    COORDINATOR: "--coordinator",
    PROCESS_ID: "--process-id",
    PROCESS_COUNT: "--process-count",
}
_FIRST_PORT, _PORTS = 61440, 4096  # where JAX looks for ports too


@dataclasses.dataclass(frozen=True)
class Cluster:
    """This process among those of its run.

    Attributes:
      launcher: who said so.
      coordinator: "host:port" of process 0.
      process_id: in [0, process_count).
      process_count: at least 2.
      local_devices: numbers of the devices of this machine that are this process's; None = all that it sees.
    """

    launcher: str
    coordinator: str
    process_id: int
    process_count: int
    local_devices: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class _Launch:
    name: str
    process_id: int
    process_count: int | None = None
    coordinator: Callable[[], str] | None = None
    local_id: int | None = None
    local_count: int | None = None


def find(
    coordinator: str | None = None,
    process_id: int | None = None,
    process_count: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Cluster | None:
    """This process's place in a cluster, or None if it is alone.

    Arguments win over the variables ABLAX_COORDINATOR, ABLAX_PROCESS_ID and ABLAX_PROCESS_COUNT, and these over what
    the launcher says; a count of 1 makes a process alone whatever the launcher says.

    Raises:
      RequestError: if what is known does not make a cluster.
    """
    environ = os.environ if environ is None else environ
    coordinator = coordinator or environ.get(COORDINATOR) or None
    process_id = _number(environ, PROCESS_ID) if process_id is None else process_id
    process_count = _number(environ, PROCESS_COUNT) if process_count is None else process_count
    if process_count == 1:
        return None
    launch = next(_launches(environ), None)
    name = "variables" if launch is None else launch.name
    if launch is not None:
        process_id = launch.process_id if process_id is None else process_id
        process_count = launch.process_count if process_count is None else process_count
    if process_count == 1 or (
        process_count is None and coordinator is None and (launch or process_id is None)
    ):
        return None
    if coordinator is None and launch and launch.coordinator:
        coordinator = launch.coordinator()
    found = {COORDINATOR: coordinator, PROCESS_ID: process_id, PROCESS_COUNT: process_count}
    if missing := [f"{key} (or {FLAGS[key]})" for key, value in found.items() if value is None]:
        given = ", ".join(f"{key}={value}" for key, value in found.items() if value is not None)
        raise RequestError(f"{given} says there are several processes; set {', '.join(missing)}")
    assert coordinator is not None
    assert process_id is not None
    assert process_count is not None
    if process_count < 1 or not 0 <= process_id < process_count:
        raise RequestError(
            f"process {process_id} of {process_count} ({name}): ids run from 0 to the count less one; "
            f"check {PROCESS_ID} and {PROCESS_COUNT}"
        )
    if not re.fullmatch(r"\S+:\d+", coordinator):
        raise RequestError(
            f"{COORDINATOR}={coordinator} must be host:port of process 0, as in node1:8476"
        )
    return Cluster(name, coordinator, process_id, process_count, _local_devices(launch, environ))


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if not text:
        return None
    if not text.isdigit():
        raise RequestError(f"{name}={text} must be a whole number")
    return int(text)


def _launches(environ: Mapping[str, str]) -> Iterator[_Launch]:
    """What launchers say, the innermost first: mpirun inside a SLURM job, a TPU inside Kubernetes."""
    yield from _open_mpi(environ)
    yield from _slurm(environ)
    yield from _tpu(environ)
    yield from _kubernetes(environ)


def _open_mpi(environ: Mapping[str, str]) -> Iterator[_Launch]:
    from jax._src.clusters import OmpiCluster

    rank, count = (_number(environ, f"OMPI_COMM_WORLD_{name}") for name in ("RANK", "SIZE"))
    if rank is None or count is None:
        return
    # Open MPI 5 does not publish its launcher's address: the user names the coordinator.
    known = OmpiCluster.is_env_present()
    yield _Launch(
        "Open MPI",
        rank,
        count,
        (lambda: OmpiCluster.get_coordinator_address(None, _port(environ))) if known else None,
        _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
        _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE"),
    )


def _slurm(environ: Mapping[str, str]) -> Iterator[_Launch]:
    """A task of a job step. The shell of sbatch or salloc knows the job's tasks too, and is none of them."""
    from jax._src.clusters import SlurmCluster

    rank, count = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_STEP_NUM_TASKS")
    if rank is None or count is None or not SlurmCluster.is_env_present():
        return
    # JAX's port depends on the job alone, and two steps of one job may run at once.
    step = int(environ.get("SLURM_STEP_ID") or 0)
    port = str(_FIRST_PORT + (int(environ["SLURM_JOB_ID"]) * 61 + step) % _PORTS)
    tasks = re.match(r"\d+", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    yield _Launch(
        "SLURM",
        rank,
        count,
        lambda: SlurmCluster.get_coordinator_address(None, _port(environ) or port),
        _number(environ, "SLURM_LOCALID"),
        int(tasks[0]) if tasks else None,
    )


def _tpu(environ: Mapping[str, str]) -> Iterator[_Launch]:
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster

    if "tpu" not in (environ.get("JAX_PLATFORMS") or "tpu").split(","):
        return  # Google's metadata server must not be asked for a run on the CPU
    for cluster in (GkeTpuCluster, GceTpuCluster):
        if cluster.is_env_present():
            yield _Launch(
                "Cloud TPU",
                cluster.get_process_id(),
                cluster.get_process_count(),
                lambda cluster=cluster: cluster.get_coordinator_address(300, _port(environ)),
            )


def _kubernetes(environ: Mapping[str, str]) -> Iterator[_Launch]:
    """A pod of an indexed job. Its manifest states count and coordinator, unless JAX may ask the cluster for them."""
    from jax._src.clusters import K8sCluster

    index = _number(environ, "JOB_COMPLETION_INDEX")
    if index is None or "KUBERNETES_SERVICE_HOST" not in environ:
        return
    stated = PROCESS_COUNT in environ or not importlib.util.find_spec("kubernetes")
    if stated or not K8sCluster.is_env_present():
        yield _Launch("Kubernetes", index)
    else:
        yield _Launch(
            "Kubernetes",
            K8sCluster.get_process_id(),
            K8sCluster.get_process_count(),
            lambda: K8sCluster.get_coordinator_address(300, _port(environ)),
        )


def _port(environ: Mapping[str, str]) -> str | None:
    return environ.get("JAX_COORDINATOR_PORT")


def _local_devices(launch: _Launch | None, environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """One GPU per process where a launcher puts several processes on a machine and lets each see all GPUs.

    JAX would choose by the local rank always, and so leave seven of eight GPUs idle with one process per machine, or
    ask for GPU 1 of the only one that the scheduler shows.
    """
    if launch is None or launch.local_id is None or (launch.local_count or 1) == 1:
        return None
    shown = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return None if len(shown) == 1 else (launch.local_id,)
