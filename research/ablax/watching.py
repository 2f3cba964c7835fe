"""Live curves of a run or a sweep in the terminal. Plain characters and colours: works over ssh."""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotext
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ablax.config import RequestError
from ablax.history import LOSSES, Curve, curve, run_folders, unit

COLORS = ("cyan", "magenta", "green", "yellow", "blue", "red", "white")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ENDED = ("finished", "failed", "paused", "preempted", "interrupted")


@dataclasses.dataclass(frozen=True)
class View:
    """What is shown of one run.

    Attributes:
      total: number of steps it will take, or None.
      seconds_left: estimated from the steps so far, or None.
    """

    name: str
    status: str
    step: int
    total: int | None
    train: Curve | None
    validation: Curve | None
    tokens_per_second: float | None
    seconds_left: float | None


def views(workdir: Path) -> list[View]:
    """The runs at or under a folder, as they stand now."""
    return [_view(name, folder) for name, folder in run_folders(workdir).items()]


def _view(name: str, folder: Any) -> View:
    records = list(folder.metrics())
    status = folder.status()
    train = curve(records, "train")
    last = next((r for r in reversed(records) if r.get("split") == "train"), {})
    step = max((r["step"] for r in records if isinstance(r.get("step"), int)), default=0)
    total = status.get("total_steps")
    state = str(status.get("status", "running"))
    left = None
    if total and (speed := last.get("tokens_per_second")) and state not in ENDED:
        left = (total - step) * _tokens_per_step(folder.config()) / speed
    validation = curve(records, "validation", (train.metric, *LOSSES) if train else LOSSES)
    return View(name, state, step, total, train, validation, last.get("tokens_per_second"), left)


def _tokens_per_step(config: dict[str, Any]) -> int:
    return config["training"]["batch_size"] * config["data"]["sequence_length"]


def picture(runs: Sequence[View], width: int, height: int, color: bool = True) -> str:
    """The loss curves as text: validation once every training run has two points of it, else training.

    A run with a single value, such as a fitted model, is drawn as a level.

    Args:
      width: in characters.
      height: in lines.
    """
    trained = [run for run in runs if run.train]
    validated = all(run.validation and len(run.validation.steps) > 1 for run in trained)
    which = "validation" if validated else "train"
    drawn = [
        (index, found)
        for index, run in enumerate(runs)
        if (found := getattr(run, which)) and _finite(found)
    ]
    if not drawn:
        return "no metrics yet"
    last = max(found.steps[-1] for _, found in drawn)
    figure = plotext
    figure.clear_figure()
    figure.plotsize(width, height)
    figure.theme("clear")
    for index, found in drawn:
        points = zip(found.steps, found.values, strict=True)
        steps, values = zip(*(point for point in points if math.isfinite(point[1])), strict=True)
        if len(steps) == 1:
            steps, values = (0, max(last, 1)), values * 2
        # The table below is the legend: plotext's would lie over the curves.
        style = {"color": COLORS[index % len(COLORS)]}
        style["marker"] = "braille" if color else LETTERS[index % len(LETTERS)]
        figure.plot(list(steps), list(values), **style)
    figure.title(f"{which} {unit(drawn[0][1].metric)} over optimizer steps")
    text = figure.build()
    return text if color else figure.uncolorize(text)


def _finite(found: Curve) -> bool:
    return any(map(math.isfinite, found.values))


def table(runs: Sequence[View], color: bool = True) -> Table:
    """Last values of every run; its name has its curve's colour, or its letter."""
    drawn = Table(box=None, pad_edge=False)
    for column in ("run", "status", "step", "train", "validation", "tokens/s", "left"):
        drawn.add_column(column, justify="left" if column in ("run", "status") else "right")
    for index, run in enumerate(runs):
        steps = f"{run.step:,}" + (f"/{run.total:,}" if run.total else "")
        last = [f"{c.values[-1]:.4f}" if c else "-" for c in (run.train, run.validation)]
        rate = f"{run.tokens_per_second:,.0f}" if run.tokens_per_second else "-"
        letter = "" if color else f"{LETTERS[index % len(LETTERS)]} "
        name = Text(letter + run.name, style=COLORS[index % len(COLORS)])
        drawn.add_row(name, run.status, steps, *last, rate, duration(run.seconds_left))
    return drawn


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds; `-` for what is not known."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def screen(runs: Sequence[View], console: Console) -> Group:
    """Curves and table, as large as the terminal."""
    height = max(10, min(30, console.height - len(runs) - 4))
    color = console.color_system is not None
    text = picture(runs, min(console.width, 120), height, color)
    return Group(Text.from_ansi(text, no_wrap=True), table(runs, color))


def watch(
    workdir: Path, once: bool = False, every: float = 2.0, console: Console | None = None
) -> None:
    """Shows the curves until every run has ended, or until Ctrl-C.

    Args:
      once: show them as they are now and return.
      every: seconds between two looks.
      console: where to; the terminal if None.

    Raises:
      RequestError: if the folder does not exist, or `every` is not positive.
    """
    if every <= 0:
        raise RequestError(f"--every={every} must be positive seconds")
    console = console or Console()
    if once or not console.is_terminal:
        console.print(screen(views(workdir), console))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            runs = views(workdir)
            live.update(screen(runs, console), refresh=True)
            if runs and all(run.status in ENDED for run in runs):
                return
            time.sleep(every)
