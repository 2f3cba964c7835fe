"""What each launcher says about this process, and mistakes in it."""

import os

import pytest

from ablax.cluster import Cluster, find
from ablax.config import RequestError

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NODELIST": "node[03-04]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
ORTE = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}
VARIABLES = {"ABLAX_COORDINATOR": "a:1", "ABLAX_PROCESS_ID": "0", "ABLAX_PROCESS_COUNT": "2"}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables; JAX's own detection reads the process's environment."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "ABLAX_PROCESS", "ABLAX_COORD", "KUBERNETES_")):
            monkeypatch.delenv(name)

    def use(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return use


def test_alone(environment):
    assert find() is None


def test_variables_and_flags(environment):
    """Catches: a variable that wins over a flag, and a count of 1 that does not make a process alone."""
    environment(**VARIABLES)
    assert find() == Cluster("variables", "a:1", 0, 2)
    assert find("b:2", 1, 3) == Cluster("variables", "b:2", 1, 3)
    assert find(process_count=1) is None


def test_slurm_step(environment):
    environment(**SLURM)
    found = find()
    assert found is not None
    assert found.coordinator == f"node03:{61440 + (77 * 61 + 1) % 4096}"
    assert (found.launcher, found.process_id, found.process_count) == ("SLURM", 3, 4)
    assert found.local_devices == (1,)


def test_two_steps_of_a_job_have_two_ports(environment):
    """Catches: JAX's port, which depends on the job alone."""
    environment(**SLURM)
    first = find()
    environment(SLURM_STEP_ID="2")
    second = find()
    assert first is not None
    assert second is not None
    assert first.coordinator != second.coordinator


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
    ],
)
def test_devices_of_a_task(environment, changes, devices):
    """Catches JAX's rule, the local rank always: seven of eight GPUs idle, or GPU 1 of one."""
    environment(**{**SLURM, **changes})
    found = find()
    assert found is not None
    assert found.local_devices == devices


def test_the_shell_of_a_job_is_alone(environment):
    """sbatch and salloc tell their shell how many tasks the job has; it is none of them."""
    shell = {k: v for k, v in SLURM.items() if not k.startswith("SLURM_STEP_")}
    environment(**shell)
    assert find() is None
    environment(SLURM_STEP_NODELIST="node03", SLURM_STEP_NUM_TASKS="1", SLURM_STEP_ID="4294967290")
    assert find() is None


def test_open_mpi_inside_slurm(environment):
    environment(**SLURM, **MPI, **ORTE)
    found = find()
    assert found is not None
    assert (found.launcher, found.process_id, found.process_count) == ("Open MPI", 1, 2)
    assert found.coordinator.startswith("10.96.0.1:")


def test_open_mpi_5_needs_an_address(environment):
    """Its launcher's address is not in the environment."""
    environment(**MPI)
    with pytest.raises(RequestError, match=r"set ABLAX_COORDINATOR \(or --coordinator\)"):
        find()
    assert find("node1:8476") == Cluster("Open MPI", "node1:8476", 1, 2, (1,))


def test_kubernetes_indexed_job(environment):
    environment(**KUBERNETES)
    assert find() is None
    environment(ABLAX_COORDINATOR="run-0-0.run:8476", ABLAX_PROCESS_COUNT="4")
    assert find() == Cluster("Kubernetes", "run-0-0.run:8476", 2, 4)


@pytest.mark.parametrize(("platforms", "joined"), [("", 1), ("tpu,cpu", 1), ("cpu", 0)])
def test_workers_of_a_tpu_slice(environment, monkeypatch, platforms, joined):
    """As GKE names them. Catches: eight runs on eight workers because JAX may also use the CPU, and Google's metadata
    asked for a run that uses nothing else."""
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
    environment(TPU_WORKER_ID="1", TPU_WORKER_HOSTNAMES="worker-0,worker-1")
    environment(JAX_PLATFORMS=platforms, JAX_COORDINATOR_PORT="9000")
    for name in ("get_tpu_env_value", "BaseTpuCluster.wait_for_coordinator"):
        monkeypatch.setattr(f"jax._src.clusters.cloud_tpu_cluster.{name}", lambda *_: None)
    found = find()
    assert bool(found) == bool(joined)
    assert not found or found == Cluster("Cloud TPU", "worker-0:9000", 1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ABLAX_PROCESS_ID": "2"}, "process 2 of 2"),
        ({"ABLAX_COORDINATOR": "node1"}, "must be host:port"),
        ({"ABLAX_PROCESS_COUNT": "two"}, "ABLAX_PROCESS_COUNT=two must be a whole number"),
        ({"ABLAX_PROCESS_ID": ""}, "set ABLAX_PROCESS_ID"),
        ({"ABLAX_PROCESS_COUNT": ""}, "set ABLAX_PROCESS_COUNT"),
    ],
)
def test_mistakes(environment, changes, message):
    environment(**{**VARIABLES, **changes})
    with pytest.raises(RequestError, match=message) as caught:
        find()
    assert "\n" not in str(caught.value)
