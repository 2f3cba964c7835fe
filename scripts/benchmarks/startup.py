"""How long a user waits: for the help text, and for the first step of a run that was started before."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from row import Row, median

ROOT = Path(__file__).resolve().parents[2]
RUN = (
    "--config.training.steps=1",
    "--config.schedule.warmup=0",
    "--config.writers.every=1",
    "--config.writers.tensorboard=false",
)


def command() -> list[str]:
    """The installed `ablax`, or the module where it is not installed."""
    script = Path(sys.executable).parent / "ablax"
    return [str(script)] if script.is_file() else [sys.executable, "-m", "ablax.cli"]


def help_seconds(rounds: int) -> tuple[list[float], list[float]]:
    """Wall time of `ablax --help` and, in turn, of a Python that does nothing."""
    sides = ([*command(), "--help"], [sys.executable, "-c", "pass"])
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, found in zip(sides, times, strict=True):
            start = time.perf_counter()
            subprocess.run(side, check=True, stdout=subprocess.DEVNULL)
            found.append(time.perf_counter() - start)
    return times


def first_step_seconds(workdir: Path, environ: dict[str, str]) -> tuple[float, float]:
    """Seconds from the start of `ablax train` to the record of its first step, and to its end."""
    start = time.perf_counter()
    arguments = ["train", "--config=experiments/pretrain/decoder.py:tiny", f"--workdir={workdir}"]
    process = subprocess.Popen(
        [*command(), *arguments, *RUN],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics, first = workdir / "metrics.jsonl", None
    while process.poll() is None:
        if first is None and metrics.is_file() and metrics.stat().st_size:
            first = time.perf_counter() - start
        time.sleep(0.005)
    whole = time.perf_counter() - start
    if process.returncode or first is None:
        raise RuntimeError(f"ablax train failed: {process.communicate()[1][-2000:]}")
    return first, whole


def measure_startup(quick: bool) -> list[Row]:
    """`ablax --help`, and a tiny run cold and warm."""
    ours, python = help_seconds(3 if quick else 11)
    rows = [
        median("ablax --help", ours, "s", at_most=0.3),
        median("python -c pass", python, "s"),
    ]
    if quick:
        return rows
    with tempfile.TemporaryDirectory(prefix="ablax-benchmark-") as folder:
        environ = os.environ | {"ABLAX_CACHE": f"{folder}/cache"}
        starts = [first_step_seconds(Path(folder) / f"run{i}", environ) for i in range(4)]
    warm = starts[1:]
    return [
        *rows,
        Row("first start to first step (empty cache)", starts[0][0], "s"),
        median("warm start to first step", [first for first, _ in warm], "s"),
        median("warm start to the end, evaluated and saved", [whole for _, whole in warm], "s"),
    ]
