"""Real processes that end badly: out of memory, and told to stop."""

import os
import subprocess
import sys

import pytest

PAGE = """
from ablax.experiment import base

def get_config(length=16):
    config = base(tokenizer="byte", schedule="constant")
    config.data.source = {"kind": "text", "glob": PATH}
    config.data.split = {"rule": "tail", "validation": 0.1}
    config.data.sequence_length = int(length)
    config.model.num_layers = 1
    config.model.width = 16
    config.model.num_heads = 2
    config.training.batch_size = 4
    config.training.steps = 1000000
    config.writers.every = 1
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "text.txt").write_text("".join(f"line {number}\n" for number in range(20_000)))
    (folder / "page.py").write_text(PAGE.replace("PATH", repr(str(folder / "text.txt"))))
    return folder


def start(folder, argument, name, limit_kib="unlimited"):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ABLAX_MALLOC": "0"}
    page, workdir = f"--config={folder / 'page.py'}:{argument}", f"--workdir={folder / name}"
    command = [sys.executable, "-m", "ablax.cli", "train", page, workdir, "--platform=cpu"]
    # The shell sets the limit: code between fork and exec could deadlock beside JAX's threads.
    return subprocess.Popen(
        ["sh", "-c", f'ulimit -v {limit_kib} && exec "$@"', "sh", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_out_of_memory_is_one_line(folder):
    """Attention over 16,384 tokens under an 8 GiB limit. Catches: a traceback of the compiler's."""
    process = start(folder, 16384, "large", limit_kib=8 * 2**20)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1, err
    assert out == ""
    assert "Traceback" not in err
    assert "ablax: out of memory: needed " in err.splitlines()[-1]
    assert "training.accumulation" in err.splitlines()[-1]


STUCK = """
import os, signal, sys, threading
from ablax import cli
from ablax.data.loader import Loader
from ablax.training.phases import Phases
make, enter = Loader._batch, Phases.enter

def stuck(self, positions):
    if positions[0] >= 5 * self.global_batch_size:
        threading.Event().wait()
    return make(self, positions)

def entering(self, name, step):
    enter(self, name, step)
    if (name, step) == ("data", 6):
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()

Loader._batch, Phases.enter, cli.LINGER_SECONDS = stuck, entering, 0.5
sys.argv = ["ablax", "train", *sys.argv[1:]]
sys.exit(cli.main())
"""


def test_a_batch_that_never_comes_is_not_waited_for(folder):
    """The wait is broken off, what is done is saved, and the loader's thread does not keep the process. Catches: a
    run that hangs in its data until it is killed."""
    workdir = folder / "no-data"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    flags = [f"--config={folder / 'page.py'}", f"--workdir={workdir}", "--platform=cpu"]
    command = [sys.executable, "-c", STUCK, *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 75, done.stderr
    assert "stopped by SIGUSR1: saved at step 5 of" in done.stderr.splitlines()[-1]
    assert (workdir / "checkpoints" / "5").is_dir()
