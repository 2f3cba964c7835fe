"""A sweep of two arms and two seeds, seconds long, that the tests of launchers run by `ablax sweep`."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ablax.sweeps.cells import read_record
from parallel.fleet import write_page

FOLDERS = ("one/seed0", "wide/seed0", "one/seed1", "wide/seed1")
PLAN = """

def get_sweep():
    from ablax.sweeps.plan import chain, named, product, seeds

    wide = named("wide", {"model.feedforward_width": 80})
    return product(chain(named("one"), wide), seeds(2))
"""
STEPS, ENDLESS = 800, 1_000_000
"""The first takes seconds, the second must be stopped."""
PATIENCE = 240
"""Seconds until a test gives up: cells start slowly where a whole machine is busy."""


def sweep_page(folder: Path) -> Path:
    """The experiment file, with text beside it."""
    page = write_page(folder)
    page.write_text(page.read_text() + PLAN)
    return page


@contextlib.contextmanager
def sweeping(
    page: Path,
    workdir: Path,
    *flags: str,
    steps: int = STEPS,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """`ablax sweep` while it runs; what it says goes to a file beside the folder."""
    command = [sys.executable, "-m", "ablax.cli", "sweep", f"--config={page}", "--platform=cpu"]
    command += [f"--config.training.steps={steps}", "--config.checkpoint.every=400"]
    command += [f"--workdir={workdir}", *flags]
    with (
        said(workdir).open("ab") as out,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=out, text=True
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def said(workdir: Path) -> Path:
    """Where the talk of a sweep goes."""
    return workdir.with_suffix(".said")


def finished(process: subprocess.Popen[str], workdir: Path) -> dict[str, str]:
    """The cells' statuses when the command has ended well."""
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said(workdir).read_text()
    return json.loads(out)["cells"]


def local_table(page: Path, workdir: Path) -> dict[str, object]:
    """The table of the same sweep on this machine, each cell on one core."""
    with sweeping(page, workdir, "--cores_per_cell=1") as running:
        statuses = finished(running, workdir)
    assert statuses == dict.fromkeys(FOLDERS, "finished")
    return table(workdir)


def table(workdir: Path) -> dict[str, object]:
    """What a report compares."""
    return {folder: read_record(workdir, folder)["metrics"] for folder in FOLDERS}


def log(workdir: Path, folder: str) -> str:
    """What a cell's processes said."""
    path = workdir / f"{folder}.log"
    return path.read_text() if path.is_file() else ""


def trains(workdir: Path, folder: str) -> bool:
    """Whether a cell has taken a step."""
    metrics = workdir / folder / "metrics.jsonl"
    return metrics.is_file() and metrics.stat().st_size > 0


def until(ready: Callable[[], object], workdir: Path) -> None:
    """Waits until something is so; if it never is, shows what was said and how far each cell came."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        logs = "\n".join(f"{folder}:\n{log(workdir, folder)}" for folder in FOLDERS)
        assert time.monotonic() < deadline, f"{said(workdir).read_text()}\n{logs}"
        time.sleep(0.1)
