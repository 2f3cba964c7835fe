"""Whether the difference between two arms grows, shrinks or crosses with scale."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

from ablax.config import RequestError
from ablax.sweeps.laws import FARTHEST
from ablax.sweeps.statistics import CONFIDENCE

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Trend:
    """An arm minus the baseline along log10 of compute, as the line that fits each seed's differences best.

    Attributes:
      verdict: `grows`, `shrinks` (the difference, whatever its sign), `crosses` (it changes sign) or `cannot tell`.
      slope: change of the difference per factor 10 of compute; `smallest`, `largest`: the line at the ends.
      slope_interval, smallest_interval, largest_interval: t intervals over seeds, or None.
      compute: the smallest and the largest FLOPs of a run.
      why: why there is no interval, or None.
      lines: each seed's (line at the smallest, slope).
    """

    verdict: str
    slope: float | None = None
    smallest: float | None = None
    largest: float | None = None
    slope_interval: Interval | None = None
    smallest_interval: Interval | None = None
    largest_interval: Interval | None = None
    compute: Interval | None = None
    why: str | None = None
    lines: tuple[tuple[float, float], ...] = ()

    def difference(self, flops: float) -> tuple[float, Interval]:
        """The difference at a compute, with its interval.

        Raises:
          RequestError: beyond `FARTHEST` times what was trained, or if the trend has no interval.
        """
        if self.compute is None or len(self.lines) < 2:
            raise RequestError(f"no difference can be predicted: {self.why}")
        low, high = self.compute
        if not low / FARTHEST <= flops * (1 + 1e-9) or flops > FARTHEST * high * (1 + 1e-9):
            raise RequestError(
                f"{flops:.3g} FLOPs are beyond {FARTHEST:g} times what was trained, {low:.3g} to {high:.3g}; nothing "
                "is predicted there; train larger arms"
            )
        at = math.log10(flops / low)
        values = np.array([start + slope * at for start, slope in self.lines])
        return float(values.mean()), _interval(values)


def trend(
    baseline: Mapping[str, Mapping[int, float]],
    arm: Mapping[str, Mapping[int, float]],
    compute: Mapping[str, float],
    confidence: float = CONFIDENCE,
) -> Trend:
    """Compares two arms over scales.

    Each seed gives one line through its paired differences, and seeds are what is independent: the intervals are those
    of t over the seeds' lines, whether or not the truth is a line. `grows` and `shrinks` need two intervals off zero,
    of the slope and of the sum of both ends, `crosses` those of the ends, so that each is claimed wrongly in at most
    5 % (an intersection of tests; Berger 1982).

    Args:
      baseline, arm: size (and ratio or budget) -> seed -> metric.
      compute: the same -> FLOPs of the baseline's run, the place on the axis for both.
    """
    places = sorted(baseline, key=lambda place: compute[place])
    seeds = sorted(baseline[places[0]]) if places else []
    whole = all(sorted(side.get(x, {})) == seeds for side in (baseline, arm) for x in places)
    axis = [compute[place] for place in places]
    if len(set(axis)) < 2:
        return Trend("cannot tell", why="one size: nothing tells how the difference changes")
    if not whole or arm.keys() != baseline.keys():
        return Trend("cannot tell", why="a size lacks a seed of one arm: not paired")
    x = np.log10(np.array(axis) / axis[0])
    differences = np.array([[arm[p][seed] - baseline[p][seed] for p in places] for seed in seeds])
    if not np.isfinite(differences).all():
        return Trend("cannot tell", why="a metric is not finite")
    slopes, starts = np.polynomial.polynomial.polyfit(x, differences.T, 1)[::-1]
    ends = starts + slopes * x[-1]
    found = Trend(
        "cannot tell",
        slope=float(slopes.mean()),
        smallest=float(starts.mean()),
        largest=float(ends.mean()),
        compute=(axis[0], axis[-1]),
        lines=tuple(zip(starts.tolist(), slopes.tolist(), strict=True)),
    )
    if len(seeds) < 2:
        why = "one seed: nothing tells how much the difference varies; run at least 3"
        return dataclasses.replace(found, why=why)
    slope, low, high, both = (
        _interval(v, confidence) for v in (slopes, starts, ends, starts + ends)
    )
    if _sign(low) * _sign(high) < 0:
        verdict = "crosses"
    else:
        verdict = {1: "grows", -1: "shrinks", 0: "cannot tell"}[_sign(slope) * _sign(both)]
    return dataclasses.replace(
        found,
        verdict=verdict,
        slope_interval=slope,
        smallest_interval=low,
        largest_interval=high,
    )


def _interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The t interval of a mean."""
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1)
    half /= math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _sign(interval: Interval) -> int:
    """1 or -1 if the interval lies on one side of zero, else 0."""
    return int(interval[0] > 0) - int(interval[1] < 0)
