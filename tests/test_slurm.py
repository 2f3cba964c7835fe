"""A real SLURM on this machine: srun starts a run of two processes; sbatch queues it again when it is preempted."""

import json
import re
import subprocess
import sys
import time

import pytest

from parallel.fleet import write_page
from parallel.local_slurm import CLUSTER, call, local_slurm, shown
from test_launch_files import readme_commands

pytestmark = [pytest.mark.ci, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which srun and sbatch find it."""
    with local_slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def ablax(tmp_path_factory):
    """The command of this checkout as one word."""
    command = tmp_path_factory.mktemp("bin") / "ablax"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m ablax.cli "$@"\n')
    command.chmod(0o755)
    return command


def test_srun_starts_one_run_of_two_processes(slurm, page, ablax, tmp_path):
    """Catches: two runs that fight for a folder, because nobody asked SLURM."""
    run = tmp_path / "run"
    out = call(
        slurm, "srun", "-n2", ablax, "train", f"--config={page}", f"--workdir={run}", seconds=240
    )
    assert json.loads(out)["finished"] is True  # one process speaks
    assert sorted(path.name for path in (run / "ledger").glob("[0-9]*")) == ["0.bin", "1.bin"]


def test_a_task_of_its_own_is_alone(slurm, page, ablax, tmp_path):
    """In the shell of a job of two tasks. Catches: a process that waits for one that nobody starts."""
    script = tmp_path / "alone.sh"
    command = f"{ablax} train --config={page} --workdir={tmp_path / 'run'}"
    script.write_text(f"#!/bin/sh\n{command} --start-timeout=5\n")
    call(slurm, "sbatch", "-n2", "--wait", f"--output={tmp_path / 'log'}", script, seconds=240)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("signal", ["TERM", "USR1"])
def test_a_preempted_job_is_queued_again_and_goes_on(slurm, page, ablax, tmp_path, signal):
    """Catches: a template that takes 75 for a failure, and a job that starts over."""
    run, log = tmp_path / "run", tmp_path / "log"
    flags = (
        "--config.training.steps=1000000 --config.checkpoint.every=0 --config.evaluation.every=0"
    )
    values = [f"config={page}", f"workdir={run}", f"ablax={ablax}", f"output={log}", "grace=60"]
    values += ["tasks_per_node=2", "resources=--cpus-per-task=1", "time=00:10:00", f"flags={flags}"]
    job = tmp_path / "job.sh"
    job.write_text(subprocess.check_output([CLUSTER / "render", "sbatch.sh", *values], text=True))
    call(slurm, "sbatch", "--test-only", job)
    number = re.search(r"\d+", call(slurm, "sbatch", job))[0]
    try:
        until(lambda: steps(run) > 5, log)
        call(slurm, "scancel", f"--signal={signal}", number)
        until(lambda: "queued again" in text(log), log)
        saved = int(re.search(r"saved at step (\d+)", text(log))[1])
        # SLURM holds a requeued job back for two minutes, and its credential for a moment.
        until(lambda: {"Restarts=1", "JobState=PENDING"} <= shown(slurm, number), log)
        call(slurm, "scontrol", "update", f"JobId={number}", "StartTime=now+3")
        until(lambda: f"resuming at step {saved}" in text(log), log)
        until(lambda: steps(run) > saved, log)
    finally:
        call(slurm, "scancel", "--full", "--signal=KILL", number)
        call(slurm, "scancel", number)


def test_sbatch_takes_the_job_of_the_readme(slurm, tmp_path):
    assert readme_commands(tmp_path) == "sbatch job.sh"
    call(slurm, "sbatch", "--test-only", tmp_path / "job.sh")


def text(path):
    return path.read_text() if path.is_file() else ""


def steps(run):
    """The last step in the metrics."""
    lines = text(run / "metrics.jsonl").splitlines()
    return json.loads(lines[-1])["step"] if lines else 0


def until(ready, log):
    deadline = time.monotonic() + 240
    while not ready():
        assert time.monotonic() < deadline, text(log)
        time.sleep(0.2)
