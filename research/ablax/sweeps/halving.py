"""Asynchronous successive halving: arms that are behind at a number of steps stop (Li et al. 2020, arXiv:1810.05934).

It is a search for a good arm and no test of one. These are the decisions; no plan can ask a sweep to follow them yet.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ablax.config import RequestError

PROMOTE, WAIT, STOP = "promote", "wait", "stop"
SELECTION = (
    "arms were halved: this is a selection and not a test; the arms that are left were chosen by the same seeds, so "
    "their differences look larger than they are; run the best again with fresh seeds to test it"
)
"""What a report says of a sweep with halving. Stopped arms stay in the family of its tests."""


@dataclasses.dataclass(frozen=True)
class Halving:
    """Rungs at which one in `factor` arms goes on.

    Attributes:
      rungs: numbers of training steps, growing; the run's last step is none.
      factor: the reduction, at least 2.
      keep: arms that are never stopped and take no place of another, beside the baseline.
    """

    rungs: tuple[int, ...]
    factor: int = 3
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rungs", "keep"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        whole = all(isinstance(step, int) and step > 0 for step in self.rungs)
        if not self.rungs or not whole or list(self.rungs) != sorted(set(self.rungs)):
            raise RequestError(
                f"Halving(rungs={self.rungs}) must be growing numbers of steps, such as (500, 1500)"
            )
        if not isinstance(self.factor, int) or self.factor < 2:
            raise RequestError(
                f"Halving(factor={self.factor!r}) must be a whole number, at least 2"
            )


@dataclasses.dataclass(frozen=True)
class Rung:
    """A decision about one arm at one rung.

    Attributes:
      decision: `promote` (go on), `stop`, or `wait` for arms that have not come so far.
      value: its mean over seeds.
      place: among the arms that were there, 1 is best; 0 for one that is kept.
      reported: how many there were.
    """

    arm: str
    rung: int
    decision: str
    value: float
    place: int
    reported: int


def halve(
    rule: Halving,
    values: Mapping[str, Mapping[int, float]],
    baseline: str,
    arms: Sequence[str],
    promoted: Mapping[str, int] | None = None,
    failed: Sequence[str] = (),
    higher: bool = False,
) -> dict[str, Rung]:
    """Decides about every arm at the highest rung that it has reached.

    Of R arms that have reported at a rung the best floor(R / factor) go on, as in the paper, without waiting for the
    others; once all that can come are there, at least one does. An arm stops as soon as no report can bring it among
    those. Ties go to the arm that the plan names first; a value that is not finite stops its arm.

    Args:
      values: arm -> rung -> value; `rung_values` makes it.
      arms: all that the plan has, the baseline among them.
      promoted: arm -> the highest rung that it was promoted from before. It stays so, whatever reports later.
      failed: arms that will report no more.
      higher: whether a higher value is better.

    Returns:
      Arm -> decision, for the arms that have reported.
    """
    kept = {baseline, *rule.keep}
    rivals = [arm for arm in arms if arm not in kept]
    promoted = promoted or {}
    found: dict[str, Rung] = {}
    coming = [arm for arm in rivals if arm not in failed or rule.rungs[0] in values.get(arm, {})]
    for rung in rule.rungs:
        here = {arm: values[arm][rung] for arm in rivals if rung in values.get(arm, {})}
        order = sorted(here, key=lambda arm: _key(here[arm], higher))
        most = max(1, len(coming) // rule.factor)
        complete = all(arm in here for arm in coming)
        on = most if complete else len(here) // rule.factor
        for place, arm in enumerate(order, 1):
            if promoted.get(arm, 0) >= rung or (place <= on and math.isfinite(here[arm])):
                decision = PROMOTE
            else:
                decision = WAIT if place <= most and math.isfinite(here[arm]) else STOP
            found[arm] = Rung(arm, rung, decision, here[arm], place, len(here))
        # Who has not reported here, or waits, may still come to the next rung.
        coming = [
            arm
            for arm in coming
            if (arm not in here or found[arm].decision != STOP)
            and (arm not in failed or _further(rule, values.get(arm, {}), rung))
        ]
    for arm in arms:
        reached = [rung for rung in rule.rungs if rung in values.get(arm, {})]
        if arm in kept and reached:
            found[arm] = Rung(arm, reached[-1], PROMOTE, values[arm][reached[-1]], 0, 0)
    return found


def _further(rule: Halving, values: Mapping[int, float], rung: int) -> bool:
    return any(later in values for later in rule.rungs if later > rung)


def _key(value: float, higher: bool) -> float:
    if not math.isfinite(value):
        return math.inf
    return -value if higher else value


def rung_values(
    rule: Halving, curves: Mapping[str, Mapping[int, Mapping[int, float]]], seeds: Sequence[int]
) -> dict[str, dict[int, float]]:
    """Arm -> rung -> mean over the seeds, of the rungs that every seed of the arm has reached.

    Args:
      curves: arm -> seed -> step -> value.
      seeds: all that count.
    """
    return {
        arm: {
            rung: sum(runs[seed][rung] for seed in seeds) / len(seeds)
            for rung in rule.rungs
            if all(rung in runs.get(seed, {}) for seed in seeds)
        }
        for arm, runs in curves.items()
    }


def record(rung: Rung) -> dict[str, Any]:
    """A decision as a record of the log of looks."""
    return {"kind": "halving", **dataclasses.asdict(rung)}
