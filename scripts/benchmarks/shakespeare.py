"""The shipped Shakespeare experiment, run as a user runs it, beside the time that nanoGPT's steps take here."""

import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from row import Row, milliseconds
from setting import Setting
from startup import ROOT, command
from worker import Worker

STEPS = 2000
TARGET_NATS = 1.82
NANOGPT_NATS = 1.8857  # nanoGPT's own run of its setting: sampled estimate


def train(text: Path, folder: Path, quick: bool) -> tuple[float, float]:
    """Validation nats per character over the whole split, and wall seconds of the whole command."""
    arguments = [
        "train",
        "--config=experiments/pretrain/shakespeare_char.py",
        f"--config.data.source=text:{text}",
        f"--workdir={folder / 'run'}",
    ]
    if quick:
        arguments += ["--config.training.steps=20", "--config.schedule.warmup=2"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command(), *arguments],
        cwd=ROOT,
        env=os.environ | {"ABLAX_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"ablax train failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)["metrics"]["nats_per_token"], seconds


def measure_shakespeare(setting: Setting, quick: bool, data: Path) -> list[Row]:
    """Trains from an empty cache; PyTorch's steps are timed before and after it."""
    text = data.resolve() / "tinyshakespeare" / "input.txt"
    rounds, count = (1, 3) if quick else (6, 40)
    seconds = []
    with (
        Worker("torch", setting, ABLAX_MALLOC="0") as torch,
        tempfile.TemporaryDirectory(prefix="ablax-benchmark-") as folder,
    ):
        seconds += [torch.time("default", count)["seconds"] for _ in range(rounds)]
        nats, wall = train(text, Path(folder), quick)
        seconds += [torch.time("default", count)["seconds"] for _ in range(rounds)]
    theirs = STEPS * statistics.median(seconds)
    return [
        Row("validation nats per character", nats, "nats", at_most=TARGET_NATS),
        Row("... nanoGPT's own (sampled estimate)", NANOGPT_NATS, "nats"),
        Row("wall time, everything included", wall, "s"),
        milliseconds("nanoGPT's step in PyTorch", seconds),
        Row(f"... times {STEPS:,}", theirs, "s"),
        Row("our wall time / nanoGPT's steps", wall / theirs, "x", at_most=1.0),
    ]
