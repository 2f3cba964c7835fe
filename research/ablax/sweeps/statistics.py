"""Means, and differences between arms that are paired by seed."""

import bisect
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

CONFIDENCE = 0.95
POWER = 0.8
MOST_SEEDS = 10**6
FEW = 20
"""Pairs of seeds under which a skew of their differences often goes unseen."""
SKEWED = 0.05
"""Level of the test for such a skew (D'Agostino 1970; `scipy.stats.skewtest`, which needs 8 pairs)."""
DIVERGED = 100.0, 0.25
"""A seed has diverged if it lies this many times as far from its arm's median as seeds usually do, and by this share of
the median."""


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
      p: of the two-sided paired t test, or None.
      p_holm: the same, adjusted for all comparisons of the family (Holm 1979), or None.
      effect: the mean difference in standard deviations of the differences, unbiased for few pairs (Hedges 1981), or
        None; two pairs have none.
      correlation: of the two arms' values over the seeds, or None: what pairing has removed.
      detectable: the smallest true difference that so many seeds show with a chance of 80 %, or None.
      warning: why the interval covers the truth less often than it says, or None.
      why: why there is no difference or no interval, else None.
    """

    n: int
    difference: float | None
    sd: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None
    effect: float | None = None
    correlation: float | None = None
    detectable: float | None = None
    warning: str | None = None
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

    Interval and p are honest for differences that are normal, or symmetric with heavy tails. Under noise that is skewed
    to one side they are not, and fewer than `FEW` seeds do not show it.

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
    ours, theirs = (
        np.array([side[seed] for seed in sorted(arm)], np.float64) for side in (arm, baseline)
    )
    differences = ours - theirs
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return Comparison(
            n, mean, why="one seed: nothing tells how much the difference varies; run at least 3"
        )
    sd = float(differences.std(ddof=1))
    if np.ptp(differences) == 0:  # of equal numbers the deviation need not be exactly 0
        return Comparison(n, mean, sd, why="the difference is the same for every seed: no interval")
    test: Any = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(confidence)
    return Comparison(
        n,
        mean,
        sd,
        (float(low), float(high)),
        p=float(test.pvalue),
        effect=mean / sd * (1 - 3 / (4 * n - 5)) if n > 2 else None,
        correlation=_correlation(ours, theirs),
        detectable=sd * _detectable_effect(n, 1 - confidence),
        warning=_skew(differences),
    )


def compare(
    values: Mapping[str, Mapping[int, float]],
    baseline: str,
    arms: Sequence[str] | None = None,
    bound: Mapping[str, str] = {},
) -> dict[str, Comparison]:
    """Compares every arm with the baseline, as one family of tests.

    An arm of which a seed diverged is not compared: a mean over runs that worked and runs that did not describes
    neither, and no interval is honest for it. So is every arm if the baseline has such a seed.

    Args:
      values: arm -> seed -> value, the baseline's among them.
      arms: all that the plan has. One that cannot be compared counts in the family all the same: which arms fail must
        not make the others significant.
      bound: arms whose runs are no independent ones, and why: they have differences and no interval, nor has any arm if
        the baseline is among them.

    Returns:
      Arm -> comparison, without the baseline.
    """
    apart = diverged(values)
    found = {}
    for arm in values:
        if arm == baseline:
            continue
        said = [f"{side}: {apart[side]}" for side in (baseline, arm) if side in apart]
        pairs = paired(values[baseline], values[arm])
        if said:
            pairs = Comparison(pairs.n, None, why="; ".join(said))
        elif pairs.difference is not None and (bound.keys() & {baseline, arm}):
            tied = [f"{side}: {bound[side]}" for side in (baseline, arm) if side in bound]
            pairs = Comparison(pairs.n, pairs.difference, why="; ".join(tied))
        found[arm] = pairs
    family = [arm for arm in (arms if arms is not None else values) if arm != baseline]
    tested = [found[arm].p if arm in found else None for arm in family]
    if not any(p is not None for p in tested):
        return found
    adjusted: Any = multipletests([1.0 if p is None else p for p in tested], method="holm")[1]
    for arm, p, holm in zip(family, tested, adjusted.tolist(), strict=True):
        if p is not None:
            found[arm] = dataclasses.replace(found[arm], p_holm=holm)
    return found


def diverged(values: Mapping[str, Mapping[int, float]]) -> dict[str, str]:
    """The arms of which a seed diverged, and which: it lies far from its arm's median, for what is usual in all arms.

    What is usual is the lower quartile of the distances from the arms' medians, a third of a standard deviation of
    normal noise, which holds until most seeds diverged. Arms of one and two seeds tell nothing, nor do those that do
    not depend on the seed.
    """
    distances = {
        arm: {
            seed: abs(value - float(np.median(list(own.values())))) for seed, value in own.items()
        }
        for arm, own in values.items()
        if len(own) > 2 and all(map(math.isfinite, own.values()))
    }
    usual = [distance for own in distances.values() for distance in own.values() if distance > 0]
    scale = float(np.quantile(usual, 0.25, method="lower")) if usual else 0.0
    found = {}
    for arm, own in distances.items():
        middle = abs(float(np.median(list(values[arm].values()))))
        bound = max(DIVERGED[0] * scale, DIVERGED[1] * middle)
        far = sorted(seed for seed, distance in own.items() if distance > bound and scale > 0)
        if far:
            others = f"the others (distance {max(own.values()):.2g}, where {scale:.1g} is usual)"
            found[arm] = f"seed {_list(far)} diverged from {others}"
    return found


def seeds_needed(difference: float, sd: float, confidence: float = CONFIDENCE) -> int | None:
    """How many pairs of seeds show a true difference with a chance of 80 % (Cohen 1988, section 2.3).

    Args:
      difference: not 0.
      sd: standard deviation of the paired differences.

    Returns:
      None for more than anybody could run.
    """
    effect, most = abs(difference) / sd, 2
    # statsmodels' solver finds nothing where three pairs are enough.
    power = functools.partial(_power, effect, alpha=1 - confidence)
    while power(most) < POWER:
        most *= 2
        if most > MOST_SEEDS:
            return None
    return bisect.bisect_left(range(most + 1), POWER, lo=most // 2, key=power)


def _power(effect: float, n: int, alpha: float) -> float:
    return float(TTestPower().power(effect, n, alpha)) if n > 1 else 0.0


@functools.lru_cache
def _detectable_effect(n: int, alpha: float) -> float:
    """In standard deviations of the differences."""
    return float(TTestPower().solve_power(nobs=n, alpha=alpha, power=POWER))


def _skew(differences: np.ndarray) -> str | None:
    if len(differences) < 8:
        return None
    p = float(stats.skewtest(differences).pvalue)
    if p > SKEWED:
        return None
    return f"its differences are skewed (p = {p:.1g}), so the interval covers the truth less often than it says"


def _correlation(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    if len(ours) < 3 or np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return None
    return float(np.corrcoef(ours, theirs)[0, 1])


def _list(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))
