"""Cells as arrays of a real SLURM: preempted, ended by somebody, and stopped; and what needs no SLURM."""

import sys
import types

import pytest

from ablax.config import RequestError
from ablax.sweeps import slurm_arrays as launcher
from ablax.sweeps.launchers import PREEMPTED, REFUSED
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
from parallel.local_slurm import call, local_slurm, shown


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with local_slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return sweep_page(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def local(page, tmp_path_factory):
    return local_table(page, tmp_path_factory.mktemp("local") / "sweep")


def queue(slurm):
    """Job -> its state, of those that SLURM has not ended."""
    lines = call(slurm, "squeue", "--me", "--array", "--noheader", "--format=%i %T").splitlines()
    return dict(line.split() for line in lines)


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_preempted_cells_go_on_and_the_table_is_that_of_the_local_queue(
    slurm, page, local, tmp_path
):
    """One cell gets the signal alone, one is queued again by SLURM itself.

    Catches: a preempted cell that starts over, is reported as ended or failed, or that nobody queues again; sums over
    other threads."""
    sweep = tmp_path / "sweep"
    with sweeping(page, sweep, "--launcher=slurm", environment=slurm) as running:
        victims = dict(enumerate(FOLDERS[:2]))  # the index in the array is the place in the plan
        until(lambda: all(trains(sweep, folder) for folder in victims.values()), sweep)
        array = min(queue(slurm)).partition("_")[0]
        call(slurm, "scancel", "--signal=TERM", f"{array}_0")
        call(slurm, "scontrol", "requeue", f"{array}_1")
        for index, folder in victims.items():
            until(lambda folder=folder: "saved at step" in log(sweep, folder), sweep)
            number = f"{array}_{index}"
            until(
                lambda number=number: {"Restarts=1", "JobState=PENDING"} <= shown(slurm, number),
                sweep,
            )
            # SLURM would hold it back for two minutes.
            call(slurm, "scontrol", "update", f"JobId={number}", "StartTime=now+2")
        assert finished(running, sweep) == dict.fromkeys(FOLDERS, "finished")
    assert table(sweep) == local
    for folder in victims.values():
        assert "resuming at step" in log(sweep, folder)
    assert "again" not in said(sweep).read_text()


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_a_stopped_sweep_saves_and_leaves_nothing_in_the_queue(slurm, page, tmp_path):
    """Some cells run, others wait. Catches: cells killed before they saved; jobs that SLURM starts afterwards."""
    sweep = tmp_path / "sweep"
    flags = ("--launcher=slurm", "--slurm", "array_parallelism=2")
    with sweeping(page, sweep, *flags, steps=ENDLESS, environment=slurm) as running:
        until(lambda: all(trains(sweep, folder) for folder in FOLDERS[:2]), sweep)
        running.terminate()
        assert running.wait(PATIENCE) == PREEMPTED, said(sweep).read_text()
    until(lambda: not queue(slurm), sweep)
    assert [f for f in FOLDERS if "saved at step" in log(sweep, f)] == list(FOLDERS[:2])
    assert not any(log(sweep, folder) for folder in FOLDERS[2:])


@pytest.mark.ci
def test_what_sbatch_refuses_is_said_in_one_line(slurm, page, tmp_path):
    sweep = tmp_path / "sweep"
    flags = ("--launcher=slurm", "--slurm=partition=absent")
    with sweeping(page, sweep, *flags, environment=slurm) as running:
        assert running.wait(PATIENCE) == REFUSED
    assert "sbatch refused" in said(sweep).read_text().splitlines()[-1]
    assert "Invalid partition" in said(sweep).read_text().splitlines()[-1]


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A launcher with two jobs in a queue that the test writes, and a clock that it sets."""
    monkeypatch.setattr(launcher, "_executor", lambda *_: types.SimpleNamespace(parameters={}))
    one = launcher.SlurmArrays(tmp_path, {})
    paths = types.SimpleNamespace(result_pickle=tmp_path / "result.pkl")
    one._running = {
        folder: types.SimpleNamespace(job_id=f"7_{index}", paths=paths)
        for index, folder in enumerate(("a/seed0", "b/seed0"))
    }
    clock = types.SimpleNamespace(now=1000.0, queue={"7_0", "7_1"})
    monkeypatch.setattr(launcher, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(launcher, "_queued", lambda: clock.queue)
    monkeypatch.setattr(launcher, "_call", lambda *_: "")

    def later(seconds):
        clock.now += seconds
        return one.ended()

    return one, clock, later


def test_a_job_that_is_queued_again_or_unknown_has_not_ended(jobs):
    """Catches: a cell given up while SLURM's controller is away, or between two of its starts."""
    _, clock, later = jobs
    clock.queue = {"7_0"}
    assert later(5) == {}  # b is missed for the first time
    clock.queue = None  # SLURM does not answer
    assert later(launcher.LOST_SECONDS + 5) == {}
    clock.queue = {"7_0"}
    assert later(5) == {}
    assert later(launcher.LOST_SECONDS + 1) == {"b/seed0": launcher.LOST}
    assert later(launcher.LOST_SECONDS + 1) == {}


def test_what_a_stop_took_from_the_queue_has_ended_at_once(jobs):
    one, clock, later = jobs
    one.stop()
    clock.queue = {"7_1"}
    assert later(5) == {"a/seed0": PREEMPTED}


def test_flags_are_checked():
    assert launcher.parameters_of(["mem=16", "--mail-type=END"]) == {"mem": 16, "mail_type": "END"}
    with pytest.raises(RequestError, match="must be KEY=VALUE"):
        launcher.parameters_of(["partition"])
    with pytest.raises(RequestError, match="a cell is one task; leave nodes out"):
        launcher.parameters_of(["nodes=2"])


def test_a_missing_library_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RequestError, match=r"needs submitit; pip install 'ablax\[sweeps\]'"):
        launcher.SlurmArrays(tmp_path, {})
