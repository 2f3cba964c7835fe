"""Real processes of one run on this machine: `ablax train` several times, joined by gloo over 127.0.0.1."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from compiling import flags

PAGE = """
from ablax.experiment import base

def get_config():
    config = base(tokenizer="byte", schedule="constant")
    config.data.source = {"kind": "text", "glob": PATH}
    config.data.split = {"rule": "tail", "validation": 0.1}
    config.data.sequence_length = 16
    config.model.num_layers = 1
    config.model.width = 16
    config.model.num_heads = 2
    config.training.batch_size = 8
    config.training.steps = 6
    config.evaluation.documents = 2
    config.evaluation.every = "3"
    config.checkpoint.every = "3"
    config.writers.every = 1
    config.writers.tensorboard = False
    return config
"""


def write_page(folder: Path) -> Path:
    """An experiment of six steps on text in a folder."""
    for number in range(20):
        text = "".join(f"line {line} of document {number}\n" for line in range(20))
        (folder / f"{number:02}.txt").write_text(text)
    page = folder / "page.py"
    page.write_text(PAGE.replace("PATH", repr(str(folder / "*.txt"))))
    return page


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def fleet(
    page: Path,
    workdir: Path,
    processes: int,
    devices: int = 1,
    common: Sequence[str] = (),
    own: dict[int, Sequence[str]] | None = None,
) -> Iterator[list[subprocess.Popen]]:
    """The started processes of a run; none is left behind.

    Args:
      devices: faked ones in each process.
      common: flags of all processes.
      own: rank -> flags of it alone.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XLA_FLAGS": f"{flags(devices)} --xla_cpu_multi_thread_eigen=false",
        "ABLAX_MALLOC": "0",
        "ABLAX_COORDINATOR": f"127.0.0.1:{free_port()}",
        "ABLAX_PROCESS_COUNT": str(processes),
    }
    started = []
    try:
        for rank in range(processes):
            command = [sys.executable, "-m", "ablax.cli", "train", f"--config={page}"]
            command += [
                f"--workdir={workdir}",
                "--platform=cpu",
                *common,
                *(own or {}).get(rank, ()),
            ]
            started.append(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**environment, "ABLAX_PROCESS_ID": str(rank)},
                )
            )
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()


def ends(processes: Sequence[subprocess.Popen], seconds: float) -> list[tuple[int, str]]:
    """(exit code, stderr) of each; fails if one does not end in time."""
    deadline = time.monotonic() + seconds
    found = []
    for process in processes:
        _, error = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        found.append((process.returncode, error))
    return found
