"""Response curves: how the metric follows one numeric knob, or two, over the arms of a grid."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from scipy import stats

from ablax.history import higher_is_better
from ablax.sweeps.pictures import canvas, ink
from ablax.sweeps.statistics import CONFIDENCE

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LEAST = 3
"""Values of a knob that make a curve."""


@dataclasses.dataclass(frozen=True)
class Response:
    """The arms of one curve or one map.

    Attributes:
      knobs: one numeric knob or two.
      others: what all these arms have set beside them, as text.
      points: the knobs' values, the mean over seeds, half of its t interval (None for one seed).
      best: the values with the best mean.
      edges: the knobs of which that is the smallest or the largest value.
      ridge: of a map, each value of the first knob with the best one of the second; empty for a curve.
    """

    knobs: tuple[str, ...]
    others: str
    points: Sequence[tuple[tuple[float, ...], float, float | None]]
    best: tuple[float, ...]
    edges: tuple[str, ...]
    ridge: Sequence[tuple[float, float]] = ()


def responses(
    overrides: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Mapping[int, float]],
    metric: str,
) -> list[Response]:
    """The curves of a grid over one numeric knob of at least three values, or its maps over two.

    Args:
      overrides: arm -> what the plan sets, without seeds.
      values: arm -> seed -> metric, of comparable arms; means that are not finite are left out.

    Returns:
      One for each setting of the knobs that are no numbers, or have two values; none of a plan that is no grid.
    """
    paths = dict.fromkeys(path for own in overrides.values() for path in own)
    levels = {path: {repr(own.get(path)) for own in overrides.values()} for path in paths}
    varying = [path for path in paths if len(levels[path]) > 1]
    knobs = tuple(
        path
        for path in varying
        if len(levels[path]) >= LEAST and all(_number(own.get(path)) for own in overrides.values())
    )
    if len(knobs) not in (1, 2):
        return []
    grouped: dict[str, dict[tuple[float, ...], list[float]]] = {}
    for arm, own in values.items():
        beside = [path for path in varying if path not in knobs]
        others = ", ".join(
            f"{path.rpartition('.')[2]}={overrides[arm][path]}"
            for path in beside
            if path in overrides[arm]
        ) or ("as configured" if beside else "")
        place = tuple(float(overrides[arm][knob]) for knob in knobs)
        found = list(own.values())
        if all(map(math.isfinite, found)):
            grouped.setdefault(others, {}).setdefault(place, []).extend(found)
    return [
        _response(knobs, others, points, metric)
        for others, points in grouped.items()
        if all(len({place[i] for place in points}) >= LEAST for i in range(len(knobs)))
    ]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _response(
    knobs: tuple[str, ...],
    others: str,
    points: Mapping[tuple[float, ...], list[float]],
    metric: str,
) -> Response:
    means = {place: float(np.mean(found)) for place, found in sorted(points.items())}

    def better(places: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
        return (max if higher_is_better(metric) else min)(places, key=lambda place: means[place])

    best = better(means)
    edges = tuple(
        knob
        for i, knob in enumerate(knobs)
        if best[i] in (min(p[i] for p in means), max(p[i] for p in means))
    )
    told = [(place, mean, _half(points[place])) for place, mean in means.items()]
    ridge = []
    if len(knobs) == 2:
        columns = sorted({place[0] for place in means})
        ridge = [(c, better([p for p in means if p[0] == c])[1]) for c in columns]
    return Response(knobs, others, told, best, edges, ridge)


def _half(found: list[float]) -> float | None:
    if len(found) < 2:
        return None
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1))
    return quantile * float(np.std(found, ddof=1)) / math.sqrt(len(found))


def draw(found: list[Response], unit: str, out: Path | str | BinaryIO, dark: bool = False) -> bool:
    """Draws curves with the t intervals of their means into one picture, or maps side by side.

    Returns:
      Whether there was anything to draw; if not, nothing is written.
    """
    if not found:
        return False
    if len(found[0].knobs) == 1:
        with canvas(out, 6.4, 4.4, dark) as figure:
            _curves(figure.subplots(), found, unit)
        return True
    with canvas(out, 5.4 * len(found), 4.4, dark) as figure:
        for axes, one in zip(np.ravel(figure.subplots(1, len(found))), found, strict=True):
            _map(figure, axes, one, unit, dark)
    return True


def _curves(axes: Any, found: list[Response], unit: str) -> None:
    for index, one in enumerate(found):
        places = [place[0] for place, _, _ in one.points]
        means = [mean for _, mean, _ in one.points]
        color = COLORS[index % len(COLORS)]
        bars = [half or 0.0 for _, _, half in one.points]
        axes.errorbar(
            places, means, bars, marker="o", capsize=3, color=color, label=one.others or None
        )
        axes.plot(
            one.best[0], means[places.index(one.best[0])], marker="*", markersize=15, color=color
        )
    every = [place[0] for one in found for place, _, _ in one.points]
    if min(every) > 0 and max(every) >= 10 * min(every):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")  # the usual one writes formulas
        axes.xaxis.set_minor_formatter("")
    axes.set_xlabel(found[0].knobs[0])
    axes.set_ylabel(
        f"validation {unit}, mean over seeds with its {CONFIDENCE:.0%} t interval", fontsize="small"
    )
    axes.grid(alpha=0.3)
    if any(one.others for one in found):
        axes.legend(framealpha=1)


def _map(figure: Any, axes: Any, one: Response, unit: str, dark: bool) -> None:
    means = {place: mean for place, mean, _ in one.points}
    columns, rows = (sorted({place[i] for place in means}) for i in range(2))
    table = np.array([[means.get((c, r), np.nan) for c in columns] for r in rows])
    image = axes.imshow(table, origin="lower", aspect="auto", cmap="viridis")
    figure.colorbar(image, ax=axes, label=f"validation {unit}, mean over seeds")
    axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    place = columns.index(one.best[0]), rows.index(one.best[1])
    ridge = [(columns.index(c), rows.index(r)) for c, r in one.ridge]
    axes.plot(*zip(*ridge, strict=True), "o", color="#ffffff", markeredgecolor=ink(False))
    axes.plot(*place, marker="*", markersize=15, color="#ffffff", markeredgecolor=ink(False))
    axes.set_xlabel(one.knobs[0])
    axes.set_ylabel(one.knobs[1])
    axes.set_title(one.others, color=ink(dark), fontsize="medium")
