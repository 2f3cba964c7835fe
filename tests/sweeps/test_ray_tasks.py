"""Cells as tasks of a real Ray cluster of two nodes on this machine; one node is killed, and a sweep is stopped."""

import contextlib
import sys

import pytest

from ablax.config import RequestError
from ablax.sweeps.launchers import PREEMPTED
from ablax.sweeps.ray_tasks import RayTasks
from cluster_sweeps import (
    ENDLESS,
    FOLDERS,
    PATIENCE,
    finished,
    local_table,
    log,
    said,
    sweep_page,
    sweeping,
    table,
    trains,
    until,
)
from parallel.fleet import free_port


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes of one CPU each; the second may be killed."""
    utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 1, "include_dashboard": False}
        cluster = utils.Cluster(initialize_head=True, head_node_args=head)
        stack.callback(cluster.shutdown)
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return sweep_page(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def local(page, tmp_path_factory):
    return local_table(page, tmp_path_factory.mktemp("local") / "sweep")


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_a_lost_nodes_cell_is_tried_again_and_the_table_is_that_of_the_local_queue(
    cluster, page, local, tmp_path
):
    """Catches: a sweep that waits for a dead node, or gives its cell up; sums over other threads; Ray's talk in the
    result."""
    sweep = tmp_path / "sweep"
    with sweeping(page, sweep, "--launcher=ray", f"--ray_address={cluster.address}") as running:
        until(lambda: sum(trains(sweep, folder) for folder in FOLDERS) == 2, sweep)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(num_cpus=1)
        assert finished(running, sweep) == dict.fromkeys(FOLDERS, "finished")
    assert said(sweep).read_text().count("tried again") == 1
    assert table(sweep) == local


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_a_stopped_sweep_saves(cluster, page, tmp_path):
    """Two run, two wait. Catches: tasks cancelled while their processes go on, or killed before they saved."""
    sweep = tmp_path / "sweep"
    flags = ("--launcher=ray", f"--ray_address={cluster.address}")
    with sweeping(page, sweep, *flags, steps=ENDLESS) as running:
        until(lambda: sum(trains(sweep, folder) for folder in FOLDERS) == 2, sweep)
        running.terminate()
        assert running.wait(PATIENCE) == PREEMPTED, said(sweep).read_text()
    began = [folder for folder in FOLDERS if log(sweep, folder)]
    assert len(began) == 2
    assert all("saved at step" in log(sweep, folder) for folder in began)
    assert not list(sweep.rglob("*.lease"))


@pytest.mark.ci
def test_what_no_node_has_is_refused(cluster):
    with pytest.raises(RequestError, match="no node of the cluster has 3 CPUs and 0 GPUs"):
        RayTasks(cluster.address, cores=3)


@pytest.mark.ci
@pytest.mark.timeout(20)
def test_a_cluster_that_is_not_there_is_said_at_once():
    pytest.importorskip("ray")
    with pytest.raises(RequestError, match=r"no Ray cluster answers \(.*refused\)"):
        RayTasks(f"127.0.0.1:{free_port()}")


def test_a_missing_library_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"needs ray; pip install 'ablax\[sweeps\]'"):
        RayTasks()
