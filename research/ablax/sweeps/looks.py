"""Looking early: which arms may stop, and which want more seeds, by the boundary that the plan declares.

A look compares an arm with the baseline over the first seeds of the plan, in the plan's order, and happens once both
have finished them all: over whichever finished first it would favour runs that end early. So a look's numbers do not
depend on when it was made or by whom, and nothing but the log of looks has to be kept.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ablax.config import RequestError
from ablax.sweeps.boundaries import Anytime, Boundary, Spending
from ablax.sweeps.statistics import diverged, paired

RULES: dict[str, type[Boundary]] = {"spending": Spending, "anytime": Anytime}
DIFFERENT, FUTILE, FINISHED, OPEN = "different", "futile", "finished", "open"
DRAWS = 4000
Values = Mapping[str, Mapping[int, float]]


@dataclasses.dataclass(frozen=True)
class Look:
    """One look at one arm.

    Attributes:
      seeds: those that were looked at; the plan's first ones.
      difference: mean of arm minus baseline over these seeds, or None if the comparison is refused.
      t: its paired t statistic, or None.
      boundary: |t| at which this look alone decides if every arm shares the level alike (Bonferroni); Holm's
        adjustment may decide earlier. None where none is large enough.
      p: of this look and those before it; 1 where the comparison is refused.
      interval: of the true difference; the intervals of all looks at this arm hold it together with a chance of one
        minus the level. None if refused or unbounded.
      interval_all: the same for the looks at all arms of the plan together.
      chance: that a later look shows a difference, or None if the rule does not ask.
      why: why the comparison is refused, else None.
    """

    arm: str
    seeds: tuple[int, ...]
    difference: float | None
    t: float | None
    boundary: float | None
    p: float
    interval: tuple[float, float] | None = None
    interval_all: tuple[float, float] | None = None
    chance: float | None = None
    why: str | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the looks so far say about one arm.

    Attributes:
      state: `different` (claimed, may stop), `futile` (may stop), `finished` (the last look showed no difference) or
        `open`.
      wanted: how many of the plan's first seeds the arm should have run; the next look's while it is open.
      p_holm: p of the looks so far, adjusted for all arms of the plan (Holm 1979).
      looks: in order; the last one has the numbers to print.
    """

    arm: str
    state: str
    wanted: int
    p_holm: float
    looks: tuple[Look, ...]


def judge(
    rule: Boundary, values: Values, baseline: str, arms: Sequence[str], seeds: Sequence[int]
) -> dict[str, Verdict]:
    """Makes all looks that are due.

    Numbers of seeds that the rule does not declare are not looked at. A comparison that is refused (a seed diverged or
    is not finite) claims nothing, and the arm counts in the family all the same.

    Args:
      values: arm -> seed -> value of the finished cells; more than a look needs do no harm.
      arms: all that the plan has, the baseline among them.
      seeds: the plan's, in its order.

    Returns:
      Arm -> verdict, without the baseline. The baseline wants as many seeds as the arm that wants most.

    Raises:
      RequestError: if the rule's looks do not fit the plan's number of seeds.
    """
    numbers = rule.looks(len(seeds))
    others = [arm for arm in arms if arm != baseline]
    made = {arm: _looks(rule, numbers, values, baseline, arm, seeds, len(others)) for arm in others}
    p = holm(np.array([made[arm][-1].p if made[arm] else 1.0 for arm in others]))
    return {
        arm: _verdict(rule, numbers, arm, made[arm], float(adjusted))
        for arm, adjusted in zip(others, p, strict=True)
    }


def holm(p: np.ndarray) -> np.ndarray:
    """p [... arms] adjusted for all of them (Holm 1979). statsmodels' collects garbage at every call."""
    order, count = np.argsort(p, axis=-1), p.shape[-1]
    steps = np.take_along_axis(p, order, -1) * (count - np.arange(count))
    adjusted = np.empty_like(steps)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1), -1)
    return adjusted


def _verdict(
    rule: Boundary, numbers: Sequence[int], arm: str, looks: Sequence[Look], p_holm: float
) -> Verdict:
    done = len(looks[-1].seeds) if looks else 0
    if p_holm <= rule.level:
        state = DIFFERENT
    elif looks and _is_futile(rule, looks[-1]):
        state = FUTILE
    else:
        state = FINISHED if done == numbers[-1] else OPEN
    wanted = done if state != OPEN else next(n for n in numbers if n > done)
    return Verdict(arm, state, wanted, p_holm, tuple(looks))


def _is_futile(rule: Boundary, look: Look) -> bool:
    return rule.futility is not None and look.chance is not None and look.chance < rule.futility


def _looks(
    rule: Boundary,
    numbers: Sequence[int],
    values: Values,
    baseline: str,
    arm: str,
    seeds: Sequence[int],
    family: int,
) -> list[Look]:
    """The looks at one arm until one that decides whatever the other arms show; so they depend on its values alone."""
    looks: list[Look] = []
    for n in numbers:
        first = tuple(seeds[:n])
        if not all(seed in values.get(side, {}) for side in (baseline, arm) for seed in first):
            break
        sides = {side: {seed: values[side][seed] for seed in first} for side in (baseline, arm)}
        before = looks[-1].p if looks else 1.0
        looks.append(_look(rule, numbers, sides, baseline, arm, before, family))
        if looks[-1].p <= rule.level / family or _is_futile(rule, looks[-1]):
            break
    return looks


def _look(
    rule: Boundary,
    numbers: Sequence[int],
    sides: Values,
    baseline: str,
    arm: str,
    before: float,
    family: int,
) -> Look:
    seeds = tuple(sides[arm])
    n = len(seeds)
    strict, single = rule.critical(n, rule.level / family), rule.critical(n, rule.level)
    shown = strict if math.isfinite(strict) else None
    found = paired(sides[baseline], sides[arm])
    why = found.why or "; ".join(f"{side}: {said}" for side, said in diverged(sides).items())
    if why or found.difference is None or found.sd is None:
        return Look(arm, seeds, None, None, shown, before, why=why)
    error = found.sd / math.sqrt(n)
    t = found.difference / error
    p = min(before, float(rule.p(n, t)))
    later = [number for number in numbers if number > n]
    chance = None
    if rule.futility is not None and later:
        differences = np.array([sides[arm][seed] - sides[baseline][seed] for seed in seeds])
        chance = 1.0 if p <= rule.level else _chance(rule, later, differences)
    return Look(
        arm,
        seeds,
        found.difference,
        t,
        shown,
        p,
        _interval(found.difference, single * error),
        _interval(found.difference, strict * error),
        chance,
    )


def _interval(middle: float, half: float) -> tuple[float, float] | None:
    return (middle - half, middle + half) if math.isfinite(half) else None


def _chance(rule: Boundary, later: Sequence[int], differences: np.ndarray) -> float:
    """That a later look shows a difference, if nothing were known of mean and deviation before these differences
    (predictive power; Spiegelhalter, Freedman and Blackburn 1986). Drawn with a fixed seed, the same whoever asks."""
    rng, n = np.random.default_rng(0), len(differences)
    deviation = np.sqrt(
        np.square(differences - differences.mean()).sum() / rng.chisquare(n - 1, DRAWS)
    )
    mean = differences.mean() + deviation / math.sqrt(n) * rng.standard_normal(DRAWS)
    more = mean[:, None] + deviation[:, None] * rng.standard_normal((DRAWS, later[-1] - n))
    every = np.concatenate([np.broadcast_to(differences, (DRAWS, n)), more], axis=1)
    shown = np.zeros(DRAWS, bool)
    for number in later:
        part = every[:, :number]
        t = part.mean(axis=1) / part.std(axis=1, ddof=1) * math.sqrt(number)
        shown |= rule.p(number, t) <= rule.level
    return float(shown.mean())


def declared(rule: Boundary) -> dict[str, Any]:
    """A boundary as JSON has it, for the plan's file and its hash.

    >>> declared(Anytime(first=4))["first"]
    4
    """
    kind = next(kind for kind, one in RULES.items() if isinstance(rule, one))
    return json.loads(json.dumps({"rule": kind, **dataclasses.asdict(rule)}))


def restored(content: Mapping[str, Any]) -> Boundary:
    """The boundary of which `declared` was written.

    Raises:
      RequestError: if it is none.
    """
    fields = {key: value for key, value in content.items() if key != "rule"}
    try:
        return RULES[content["rule"]](**fields)
    except (KeyError, TypeError):
        raise RequestError(
            f"looks: {dict(content)} is no boundary; declare Spending(...) or Anytime(...)"
        ) from None
