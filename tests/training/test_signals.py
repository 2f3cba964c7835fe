"""Real processes that are asked to end: what they say, with which code they end, and how soon."""

import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# `hang` holds the process outside Python, where no handler runs, as a compiler or a dead file system does.
CHILD = """
import ctypes, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from ablax.run import Preempted
from ablax.training.phases import Phases
from ablax.training.signals import catch, signals

def hang():
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex), lock(mutex)

phases = Phases()
try:
    with signals(phases, grace=float(sys.argv[2])) as stop:
        print("ready", flush=True)
        exec(sys.argv[3])
except Preempted as line:
    print("preempted:", line)
except KeyboardInterrupt:
    print("interrupted")
"""
WAIT = "while not stop(): time.sleep(0.01)"


def start(body, grace=100.0):
    """A process that runs `body` under `signals`; returns when it has begun."""
    command = [sys.executable, "-c", CHILD, str(ROOT / "research"), str(grace), body]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    time.sleep(0.2)  # it reaches the place where it hangs
    return process


def end(process):
    """Its exit code and what it said."""
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, (out + err).strip()


def test_the_watchdog_ends_a_stuck_process():
    """Catches: a run that hangs until the scheduler kills it, without a word of where."""
    process = start("with stop.breakable(False): phases.enter('save', 7); hang()", grace=0.5)
    process.send_signal(signal.SIGTERM)
    said = "ablax: stopped by SIGTERM, and after 0.5 s still in save at step 7: ended, not saved"
    assert end(process) == (1, said)


def test_a_compiler_is_not_waited_for():
    """Nothing was made that could be saved. Catches: exit code 1, or no exit at all, from minutes of compilation."""
    process = start("with stop.breakable(False): phases.enter('compile', 1); hang()", grace=0.5)
    process.send_signal(signal.SIGUSR1)
    code, said = end(process)
    assert code == 75
    assert said.startswith("ablax: stopped by SIGUSR1 in compile at step 1: nothing new to save")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_at_once(number):
    """Catches: waiting for the grace time, or for Python; and taking one signal delivered twice for two."""
    process = start("with stop.breakable(False): phases.enter('save', 3); hang()")
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(number)
    code, said = end(process)
    assert code == 128 + number
    assert said.endswith("a second time: ended, not saved")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGTERM, "preempted: stopped by SIGTERM in start at step 0: nothing new to save"),
        (signal.SIGUSR1, "preempted: stopped by SIGUSR1 in start at step 0: nothing new to save"),
        (signal.SIGINT, "interrupted"),
    ],
)
def test_where_there_is_nothing_to_save_it_ends(number, said):
    """Also inside asyncio and `except Exception`, as in a restore. Catches: an exception that those swallow."""
    body = """
import asyncio
async def wait():
    while True:
        try:
            await asyncio.sleep(0.001)
            sum(range(10_000))
        except Exception: pass
asyncio.run(wait())
"""
    process = start(body)
    process.send_signal(number)
    code, found = end(process)
    assert code == 0, found
    assert found.startswith(said)


def test_a_wish_is_kept_until_it_is_asked_for():
    """Catches: breaking off a save."""
    body = f"""
with stop.breakable(False):
    {WAIT}
    print(stop())
    try:
        with stop.breakable(True): print("not reached")
    except KeyboardInterrupt:
        print("broken off")
    print("saved")
"""
    process = start(body)
    process.send_signal(signal.SIGTERM)
    assert end(process) == (0, "stopped by SIGTERM\nbroken off\nsaved")


def test_what_came_too_late_for_a_run_ends_the_sweep():
    """Catches: the next cell begun after a wish to stop, because the one before had just finished."""
    body = """
with signals(Phases(), 100) as inner, inner.breakable(False):
    while not inner(): time.sleep(0.01)
    print("finished")
print("not reached")
"""
    process = start(body)
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == 0
    assert said.startswith("finished\npreempted: stopped by SIGTERM")


def test_the_handlers_of_before_come_back():
    """Catches: a notebook or a sweep that cannot be stopped after a run."""
    after = "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.set_wakeup_fd(-1))"
    command = [sys.executable, "-c", CHILD + after, str(ROOT / "research"), "1", "pass"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert found.stdout == "ready\nTrue -1\n", found.stderr


def test_jax_does_not_keep_the_signal():
    """`jax.distributed.initialize` takes SIGTERM and only notes it. Catches: a run of several processes that nobody
    can stop."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    body = f"""
import jax
with stop.breakable(False):
    jax.distributed.initialize("127.0.0.1:{port}", 1, 0)
    catch(stop)
    print("initialised", flush=True)
    {WAIT}
    print(stop(), flush=True)
    jax.distributed.shutdown()
"""
    process = start(body)
    assert process.stdout.readline() == "initialised\n"
    process.send_signal(signal.SIGTERM)
    code, found = end(process)
    assert (code, found.splitlines()[0]) == (0, "stopped by SIGTERM")
