"""Means, and differences between two arms that are paired by seed."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Summary:
    """One arm's values over its seeds. `sd` is the sample standard deviation, None for fewer than two values."""

    n: int
    mean: float
    sd: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An arm minus the baseline.

    Attributes:
      n: number of seed pairs.
      difference: mean of the paired differences, or None if the comparison is refused.
      sd: their sample standard deviation, or None.
      interval: the paired t interval of the mean difference, or None.
      why: why there is no difference or no interval, else None.
    """

    n: int
    difference: float | None
    sd: float | None = None
    interval: tuple[float, float] | None = None
    why: str | None = None


def summary(values: Mapping[int, float]) -> Summary:
    """Mean and standard deviation of one arm's values by seed; at least one."""
    array = np.array(list(values.values()), np.float64)
    return Summary(
        len(array), float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None
    )


def paired(
    baseline: Mapping[int, float], arm: Mapping[int, float], confidence: float = CONFIDENCE
) -> Comparison:
    """Compares an arm with the baseline, seed by seed (Student 1908; `scipy.stats.ttest_1samp` of the differences).

    The comparison is refused, not patched, when a seed is missing on one side or a value is not finite. One pair gives
    a difference and no interval: nothing tells how much it varies.
    """
    only = {
        side: sorted(set(a) - set(b))
        for side, a, b in (("baseline", baseline, arm), ("arm", arm, baseline))
    }
    if only["baseline"] or only["arm"]:
        parts = [
            f"seeds {_list(found)} only in the {side}" for side, found in only.items() if found
        ]
        return Comparison(
            len(set(baseline) & set(arm)), None, why=f"not paired: {' and '.join(parts)}"
        )
    bad = [seed for seed in arm if not (math.isfinite(arm[seed]) and math.isfinite(baseline[seed]))]
    if bad:
        return Comparison(len(arm), None, why=f"not finite at seeds {_list(sorted(bad))}")
    differences = np.array([arm[seed] - baseline[seed] for seed in sorted(arm)], np.float64)
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return Comparison(
            n, mean, why="one seed: nothing tells how much the difference varies; run at least 3"
        )
    sd = float(differences.std(ddof=1))
    if sd == 0:
        return Comparison(n, mean, sd, why="the difference is the same for every seed: no interval")
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(confidence)
    return Comparison(n, mean, sd, (float(low), float(high)))


def _list(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))
