"""How pictures of a report are drawn: on a light or a dark page, names of arms being no formulas."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

DARK = {
    "figure.facecolor": "#16181b",
    "axes.facecolor": "#16181b",
    "savefig.facecolor": "#16181b",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), "#e8e8e8"),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), "#a8adb3"),
}
"""Matplotlib's settings for a dark page."""


@contextlib.contextmanager
def canvas(out: Path | str | BinaryIO, width: float, height: float, dark: bool) -> Iterator[Any]:
    """A figure of so many inches, which is written as the context ends.

    Args:
      out: `.png` or `.svg`, or an open file that gets a PNG.
      dark: for a dark page; else a light one.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {"text.parse_math": False}
    if dark:
        settings |= DARK
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(out, dpi=150)


def ink(dark: bool) -> str:
    """The colour of what must be seen on such a page."""
    return "#e8e8e8" if dark else "#000000"
