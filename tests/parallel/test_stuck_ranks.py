"""A rank that is killed, frozen or stuck: every rank ends in time, and says which it was, at which step, doing what."""

import os
import re
import signal
import subprocess
import time

import pytest

from parallel.fleet import ends, fleet, write_page

LIMITS = ("--config.heartbeat.silence=2", "--config.heartbeat.stuck=4")
ENDLESS = (
    "--config.training.steps=1000000",
    "--config.evaluation.every=0",
    "--config.checkpoint.every=0",
)
SECONDS = 4 + 2 + 10  # the longest limit, the last words, and a loaded machine


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("data"))


def await_steps(workdir, processes):
    """Returns when the run has made steps."""
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 90
    while not (metrics.is_file() and metrics.read_text().count("\n") > 5):
        assert time.monotonic() < deadline
        for process in processes:
            assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


def last_line(error):
    return error.strip().splitlines()[-1]


def assert_nothing_left(workdir):
    """No process of the run is there any more."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
    assert [line for line in found.splitlines() if str(workdir) in line] == []


@pytest.fixture
def running(page, tmp_path):
    """Folder and processes of an endless run of two ranks that makes steps."""
    with fleet(page, tmp_path / "run", 2, common=[*ENDLESS, *LIMITS]) as started:
        await_steps(tmp_path / "run", started)
        yield tmp_path / "run", started


def lost(running, rank, number):
    """Sends a signal to one of two ranks; what the other ended with."""
    workdir, started = running
    pid = started[rank].pid
    started[rank].send_signal(number)
    found = ends(started, SECONDS)
    code, error = found[1 - rank]
    assert code == 1, error
    line = last_line(error)
    assert re.match(rf"ablax: rank {rank} \(\S+, pid {pid}\) ", line), error[-3000:]
    # The last beat may be older than the last step.
    assert re.search(r" in (data|compile|step) at step [1-9]\d*: all ranks end$", line)
    assert found[rank][0] == -signal.SIGKILL  # a frozen process cannot end itself
    assert_nothing_left(workdir)
    return line


@pytest.mark.ci
def test_a_killed_rank_ends_all(running):
    """Catches: a collective's error of many lines, or none, that names no rank."""
    assert " is dead, last heard of " in lost(running, 1, signal.SIGKILL)


@pytest.mark.slow
def test_process_0_killed(running):
    """The one that holds the words of all. Catches: JAX's abort, which comes within a millisecond."""
    assert re.search(r" is (dead|gone), ", lost(running, 0, signal.SIGKILL))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_frozen_rank(running, rank):
    """It holds its connections open: nothing but silence tells. Catches: ranks that wait for ever."""
    line = lost(running, rank, signal.SIGSTOP)
    assert " does not answer, " in line or " is frozen or unreachable, " in line


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_gets_no_data(page, tmp_path, rank, monkeypatch):
    """Its process lives and beats; the others wait in the collective of a later step and are not to be blamed."""
    monkeypatch.setenv("STUCK_RANK", str(rank))
    monkeypatch.setenv("STUCK_ROW", "400")
    name = "parallel.slow_objective:SlowCausal"
    mine = [f"--extend={name}", f"--config.objective.kind={name}"]
    with fleet(page, tmp_path / "run", 2, common=[*ENDLESS, *LIMITS, *mine]) as started:
        found = ends(started, 90)
    for code, error in found:
        assert code == 1, error
        assert re.search(
            rf"ablax: rank {rank} .* is stuck in data at step \d+, for", last_line(error)
        )
    assert_nothing_left(tmp_path / "run")


# One layer calls the host once when parameters are made, at each step, and for each batch of an evaluation.
OFTEN = ("--config.evaluation.every=3", "--config.checkpoint.every=3")
PLACES = {
    "step": ({"STUCK_CALL": "40"}, ("--config.heartbeat.stuck=4", *ENDLESS)),
    "evaluate": ({"STUCK_CALL": "6"}, ("--config.heartbeat.patience=10", *OFTEN)),
    "save": ({"STUCK_PATH": "/checkpoints"}, ("--config.heartbeat.patience=10", *OFTEN)),
    # Orbax writes in a thread; the next save waits for it.
    "save behind": ({"STUCK_PATH": "commit_success"}, ("--config.heartbeat.patience=10", *OFTEN)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "rank", "steps"),
    [
        ("step", 0, range(38, 41)),
        ("step", 1, range(38, 41)),
        ("evaluate", 0, [3]),
        ("evaluate", 1, [3]),
        ("save", 0, [3]),
        ("save", 1, [3]),
        ("save behind", 0, [6]),  # process 0 commits
    ],
)
def test_a_rank_that_all_wait_for_in_the_same_phase(
    page, tmp_path, place, rank, steps, monkeypatch
):
    """Its process lives and beats, and all are in the same phase of the same step. Catches: a victim that is named."""
    environment, flags = PLACES[place]
    for key, value in {"STUCK_RANK": str(rank), **environment}.items():
        monkeypatch.setenv(key, value)
    name = "parallel.stuck_places:StuckAttention"
    mine = [f"--extend={name}", f"--config.model.attention={name}"]
    common = ["--config.heartbeat.silence=2", *flags, *mine]
    with fleet(page, tmp_path / "run", 2, common=common) as started:
        pid = started[rank].pid
        found = ends(started, 60)
    ended = time.time()
    since = re.search(r"^stuck since (\S+)$", found[rank][1], re.MULTILINE)
    assert since, found[rank][1]
    assert (
        ended - float(since[1]) < 10 + 2 + 10
    )  # the longest limit, the last words, and a loaded machine
    for code, error in found:
        assert code == 1, error
        line = last_line(error)
        where = rf" is stuck in {place.split()[0]} at step (\d+), for \d+ s: all ranks end;"
        told = re.match(rf"ablax: rank {rank} \(\S+, pid {pid}\){where}", line)
        assert told, error[-3000:]
        assert int(told[1]) in steps
    assert_nothing_left(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(page, tmp_path, number):
    """Catches: one rank that saves while the other waits for it in the next step."""
    with fleet(
        page, tmp_path / "run", 2, common=[*ENDLESS, "--config.heartbeat.silence=5"]
    ) as started:
        await_steps(tmp_path / "run", started)
        started[1].send_signal(number)
        found = ends(started, 60)
    lines = [last_line(error) for _, error in found]
    assert [code for code, _ in found] == [75, 75], lines
    steps = [int(re.search(r"saved at step (\d+)", line)[1]) for line in lines]
    assert steps[0] == steps[1]
    assert os.path.isdir(tmp_path / "run" / "checkpoints" / str(steps[0]))
