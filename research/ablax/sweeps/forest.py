"""The differences of a report as a picture: one line an arm, with its interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablax.history import higher_is_better
from ablax.sweeps.statistics import CONFIDENCE

ACCENT, MUTED = "#0072B2", "#777777"


def differences(found: Mapping[str, Any], out_path: Path | str) -> bool:
    """Draws a forest plot: differences from the baseline with their intervals, those of single pairs as crosses.

    Those that the table does not star are drawn in grey, whatever their unadjusted p.

    Args:
      found: what `report` returns.
      out_path: `.png` or `.svg`.

    Returns:
      Whether there was anything to draw; if not, nothing is written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in found["arms"] if row["difference"] is not None]
    if not rows:
        return False
    figure = Figure(figsize=(6.4, 1.2 + 0.45 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    # Names of arms are no formulas.
    with matplotlib.rc_context({"text.parse_math": False}):
        _draw(figure.subplots(), rows, found)
        figure.savefig(out_path, dpi=150)
    return True


def _draw(axes: Any, rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
    for place, row in enumerate(rows):
        _interval(axes, place, row)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["arm"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    better = "right" if higher_is_better(found["metric"]) else "left"
    exploratory = "exploratory; " if found["exploratory"] else ""
    axes.set_xlabel(
        f"{exploratory}{found['unit']}: difference from {found['baseline']}, {CONFIDENCE:.0%} interval; "
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
