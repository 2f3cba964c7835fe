"""The differences of a report as a picture: one line an arm, with its interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ablax.history import higher_is_better
from ablax.sweeps.pictures import canvas, ink
from ablax.sweeps.statistics import CONFIDENCE

ACCENT, MUTED = "#0072B2", "#777777"


def differences(found: Mapping[str, Any], out: Path | str | BinaryIO, dark: bool = False) -> bool:
    """Draws a forest plot: differences from the baseline with their intervals, those of single pairs as crosses.

    Those that the table does not star are drawn in grey, whatever their unadjusted p.

    Args:
      found: what `report` returns.
      out, dark: see `canvas`.

    Returns:
      Whether there was anything to draw; if not, nothing is written.
    """
    rows = [row for row in found["arms"] if row["difference"] is not None]
    if not rows:
        return False
    with canvas(out, 6.4, 1.6 + 0.45 * len(rows), dark) as figure:
        _draw(figure.subplots(), rows, found, ink(dark))
    return True


def _draw(
    axes: Any, rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any], color: str
) -> None:
    for place, row in enumerate(rows):
        _interval(axes, place, row)
    axes.axvline(0, color=color, linewidth=1)
    axes.set_yticks(range(len(rows)), [row["arm"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    better = "right" if higher_is_better(found["metric"]) else "left"
    exploratory = "exploratory; " if found["exploratory"] else ""
    axes.set_xlabel(
        f"{exploratory}{found['unit']}: difference from\n{found['baseline']},\n{CONFIDENCE:.0%} interval; "
        f"better to the {better}"
    )
    axes.grid(axis="x", alpha=0.3)


def _interval(axes: Any, place: int, row: Mapping[str, Any]) -> None:
    if row["interval"] is None:
        axes.plot(row["difference"], place, marker="x", color=MUTED)
        return
    low, high = row["interval"]
    color = ACCENT if row["star"] else MUTED
    axes.plot([low, high], [place, place], color=color, linewidth=2)
    axes.plot(row["difference"], place, marker="o", color=color)
