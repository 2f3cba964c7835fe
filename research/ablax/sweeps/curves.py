"""Learning curves of a sweep as a picture."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ablax.history import LOSSES, Curve, curve, higher_is_better, unit
from ablax.run import RunFolder
from ablax.sweeps.cells import compared, read_plan
from ablax.sweeps.pictures import canvas

# Okabe and Ito's palette: told apart with colour-blind eyes too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
LINES = ("-", "--", ":", "-.")
"""Of the first arms that have each colour once, of the next ones, and so on."""
NAMED = 10
"""Arms of a panel that have a name and a colour; where there are more, the others are grey."""
GREY = {"color": "#B0B0B0", "linestyle": "-", "zorder": 1}


@dataclasses.dataclass(frozen=True)
class Panel:
    """Arms that share a metric.

    Attributes:
      curves: arm -> one curve for each of its seeds.
      apart: whether its numbers must not be compared with those of the other panels.
    """

    metric: str
    apart: bool
    curves: Mapping[str, Sequence[Curve]]


def panels(sweep: Path, apart: Iterable[str] = (), metric: str | None = None) -> list[Panel]:
    """The validation curves of a sweep: first those of the primary metric, then those of other metrics.

    Args:
      apart: arms that must not stand beside the others even where their metric has the same name.
      metric: in place of the plan's.
    """
    plan, apart = compared(read_plan(sweep)), set(apart)
    metric = metric or str(plan["metric"])
    grouped: dict[tuple[bool, str], dict[str, list[Curve]]] = {}
    for cell in plan["cells"]:
        records = list(RunFolder(sweep / cell["folder"]).metrics())
        found = curve(records, "validation", (metric, *LOSSES))
        if found:
            key = (cell["arm"] in apart, found.metric)
            grouped.setdefault(key, {}).setdefault(cell["arm"], []).append(found)
    order = sorted(grouped, key=lambda key: (key[0], key[1] != metric))
    return [Panel(key[1], key[0] or key[1] != metric, grouped[key]) for key in order]


def learning_curves(
    sweep: Path | str,
    out: Path | str | BinaryIO,
    apart: Iterable[str] = (),
    dark: bool = False,
    metric: str | None = None,
) -> bool:
    """Draws the validation curves: the mean over seeds, with a band from the lowest seed to the highest.

    A single value is drawn as a level.

    Args:
      sweep: the sweep's folder.
      out, dark: see `canvas`.
      apart: arms that get a panel of their own because their numbers are not comparable.
      metric: in place of the plan's.

    Returns:
      Whether there was anything to draw; if not, nothing is written.
    """
    sweep = Path(sweep)
    plan, shown = read_plan(sweep), panels(sweep, apart, metric)
    if not shown:
        return False
    names = set().union(*(named_of(panel, plan["baseline"]) for panel in shown))
    styles = {
        arm: {
            "color": COLORS[index % len(COLORS)],
            "linestyle": LINES[index // len(COLORS) % len(LINES)],
        }
        for index, arm in enumerate(arm for arm in plan["arms"] if arm in names)
    }
    with canvas(out, 6.4 * len(shown), 4.4, dark) as figure:
        for axes, panel in zip(np.ravel(figure.subplots(1, len(shown))), shown, strict=True):
            _draw(axes, panel, styles)
    return True


def named_of(panel: Panel, baseline: str) -> set[str]:
    """All arms of a panel, or the best ones and the baseline."""
    if len(panel.curves) <= NAMED:
        return set(panel.curves)
    ends = {arm: np.mean([c.values[-1] for c in curves]) for arm, curves in panel.curves.items()}
    ranked = sorted(ends, key=lambda arm: ends[arm], reverse=higher_is_better(panel.metric))
    first = [baseline] if baseline in panel.curves else []
    return set([*first, *(arm for arm in ranked if arm != baseline)][:NAMED])


def _draw(axes: Any, panel: Panel, styles: Mapping[str, Mapping[str, Any]]) -> None:
    longest = max(max(c.steps) for curves in panel.curves.values() for c in curves)
    for arm, curves in panel.curves.items():
        label = f"{arm} ({len(curves)} seed{'s' if len(curves) > 1 else ''})"
        if arm not in styles:
            label = ""
        style = styles.get(arm, GREY)
        if all(len(c.steps) == 1 for c in curves):
            level = float(np.mean([c.values[-1] for c in curves]))
            axes.axhline(level, linewidth=1, label=label and f"{label}, one value", **style)
            continue
        shared = sorted(set.intersection(*(set(c.steps) for c in curves)))
        rows = [dict(zip(c.steps, c.values, strict=True)) for c in curves]
        means = [float(np.mean([row[step] for row in rows])) for step in shared]
        if len(curves) > 1:
            ends = [[pick(row[step] for row in rows) for step in shared] for pick in (min, max)]
            axes.fill_between(shared, *ends, alpha=0.25, linewidth=0, color=style["color"])
        marker = "o" if len(shared) <= 20 else None
        axes.plot(shared, means, linewidth=2, marker=marker, markersize=3.5, label=label, **style)
    if panel.apart:
        axes.set_title("not comparable with the other arms", fontsize="medium")
    axes.set_xlim(0, longest * 1.03 or 1)
    axes.set_xlabel("optimizer steps; bands: lowest to highest seed")
    axes.set_ylabel(f"validation {unit(panel.metric)}")
    axes.grid(alpha=0.3)
    if others := len(panel.curves.keys() - styles.keys()):
        axes.plot([], [], label=f"{others} others", **GREY)
    axes.legend(framealpha=1)
