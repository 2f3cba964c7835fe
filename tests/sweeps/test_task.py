"""A cell's process under that of a scheduler: it gets one SIGTERM, whatever the scheduler sends, and when."""

import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from ablax.sweeps import task as module
from ablax.sweeps.launchers import PREEMPTED, Job
from ablax.sweeps.task import Task

COUNT = """
import os, pathlib, signal, time
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
pathlib.Path("ready").touch()
deadline = time.monotonic() + 20
while not got and time.monotonic() < deadline: time.sleep(0.01)
time.sleep(0.4)  # saves
print(len(got), os.environ["NPROC"], flush=True)
os._exit(75)
"""
DEAF = "import pathlib, time; pathlib.Path('ready').touch(); time.sleep(20)"


@pytest.fixture
def child(tmp_path, monkeypatch):
    """A task whose process runs this code in the test's folder."""

    def make(code: str) -> Task:
        monkeypatch.setattr(module, "command_of", lambda job: (sys.executable, "-c", code))
        job = Job("a/seed0", tmp_path, (), tmp_path, tmp_path / "log", "")
        return Task(job, cores=1, folder=tmp_path)

    return make


def when_ready(folder: Path, *actions) -> None:
    """Does something in this process when its child is ready, and more while that saves."""

    def wait():
        while not (folder / "ready").exists():
            time.sleep(0.01)
        for action in actions:
            action()
            time.sleep(0.1)

    threading.Thread(target=wait, daemon=True).start()


def test_a_wish_is_passed_on_once_and_its_save_is_waited_for(child, tmp_path):
    """Catches: a second signal, which would end the process before it has saved."""
    task = child(COUNT)
    when_ready(tmp_path, task.ask, lambda: signal.raise_signal(signal.SIGUSR2), task.ask)
    before = signal.signal(signal.SIGUSR2, lambda *_: task.ask())
    try:
        assert task.run() == PREEMPTED
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (tmp_path / "log").read_text() == "1 1\n"


def test_an_interrupt_that_wakes_nothing_is_a_wish(child, tmp_path):
    """As Ray cancels. Catches: waiting in the system for a process, where Python's interrupts are not seen."""
    import _thread

    when_ready(tmp_path, _thread.interrupt_main)
    assert child(COUNT).run() == PREEMPTED
    assert (tmp_path / "log").read_text() == "1 1\n"


def test_a_process_that_could_not_listen_yet_was_preempted(child):
    """Asked before it was started. Catches: a wish forgotten; a cell that counts as killed."""
    task = child(DEAF)
    task.ask()
    began = time.monotonic()
    assert task.run() == PREEMPTED
    assert time.monotonic() - began < 10


def test_the_schedulers_own_signal_ends_no_cell(child, tmp_path):
    """SLURM sends it to all processes of a step. Catches: a cell killed by the signal that tells of its time limit."""
    task = child(COUNT)
    when_ready(
        tmp_path,
        lambda: task._process and task._process.send_signal(signal.SIGUSR2),
        task.ask,
    )
    assert task.run() == PREEMPTED
