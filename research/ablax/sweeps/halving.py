"""Asynchronous successive halving: trials that are behind at a number of steps stop (Li et al. 2020, arXiv:1810.05934).

It is a search for a good trial and no test of one. What it leaves looks better than it is, so a plan may halve nothing
but the trials of `tuned`: their winner is trained anew, with fresh seeds and on another split, and that is compared.
`ablax.sweeps.halved` follows these decisions in a sweep's folder.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ablax.config import RequestError

PROMOTE, WAIT, STOP = "promote", "wait", "stop"
SELECTION = (
    "trials were halved, which is a selection and not a test: those that are left were chosen by the same runs and "
    "look better than they are, and no curve of the expected best can be told; looks.jsonl has each decision"
)
"""What a report says of trials that were halved."""


@dataclasses.dataclass(frozen=True)
class Halving:
    """Rungs at which one in `factor` trials of each arm goes on.

    Attributes:
      rungs: numbers of training steps, growing; the run's last step is none.
      factor: the reduction, at least 2.
    """

    rungs: tuple[int, ...]
    factor: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "rungs", tuple(self.rungs))
        whole = all(isinstance(step, int) and step > 0 for step in self.rungs)
        if not self.rungs or not whole or list(self.rungs) != sorted(set(self.rungs)):
            raise RequestError(
                f"Halving(rungs={self.rungs}) must be growing numbers of steps, such as (500, 1500)"
            )
        if not isinstance(self.factor, int) or self.factor < 2:
            raise RequestError(
                f"Halving(factor={self.factor!r}) must be a whole number, at least 2"
            )

    def after(self, reached: Mapping[int, float]) -> int | None:
        """The rung that comes after those that a trial has reached, or None."""
        return next((rung for rung in self.rungs if rung not in reached), None)


@dataclasses.dataclass(frozen=True)
class Rung:
    """A decision about one trial at the highest rung that it has reached.

    Attributes:
      arm: the trial's name.
      decision: `promote` (go on), `stop`, or `wait` for trials that have not come so far.
      place: among the trials of its arm that were there, 1 is best.
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
    trials: Sequence[str],
    promoted: Mapping[str, int] | None = None,
    failed: Sequence[str] = (),
    higher: bool = False,
) -> dict[str, Rung]:
    """Decides about every trial of an arm at the highest rung that it has reached.

    Of R trials that have reported at a rung the best floor(R / factor) go on, as in the paper, without waiting for the
    others; once all that can come are there, at least one does. A trial stops as soon as no report can bring it among
    those; it may go on after all when one that went on fails. Ties go to the trial that the plan names first; a value
    that is not finite stops its trial.

    Args:
      values: trial -> rung -> value.
      trials: all that the arm has.
      promoted: trial -> the highest rung that it was promoted from before. It stays so, whatever reports later.
      failed: trials that will come no further. They take no place.
      higher: whether a higher value is better.

    Returns:
      Trial -> decision, for those that have reported and not failed.
    """
    promoted = promoted or {}
    found: dict[str, Rung] = {}
    coming = [trial for trial in trials if trial not in failed]
    for rung in rule.rungs:
        here = {trial: values[trial][rung] for trial in coming if rung in values.get(trial, {})}
        order = sorted(here, key=lambda trial: _key(here[trial], higher))
        most = max(1, len(coming) // rule.factor)
        on = most if len(here) == len(coming) else len(here) // rule.factor
        for place, trial in enumerate(order, 1):
            finite = math.isfinite(here[trial])
            if promoted.get(trial, 0) >= rung or (place <= on and finite):
                decision = PROMOTE
            else:
                decision = WAIT if place <= most and finite else STOP
            found[trial] = Rung(trial, rung, decision, here[trial], place, len(here))
        # Who has not reported here, or waits, may still come to the next rung.
        coming = [trial for trial in coming if trial not in here or found[trial].decision != STOP]
    return found


def _key(value: float, higher: bool) -> float:
    if not math.isfinite(value):
        return math.inf
    return -value if higher else value


def entry(rung: Rung) -> dict[str, Any]:
    """A decision as a record of the log of looks."""
    return {"kind": "halving", **dataclasses.asdict(rung)}


def decided(log: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], str]:
    """(trial, rung) -> the last decision about it in the log of looks."""
    return {(r["arm"], r["rung"]): r["decision"] for r in log if r.get("kind") == "halving"}


def promoted_in(log: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Trial -> the highest rung that it was promoted from, by the log of looks."""
    found: dict[str, int] = {}
    for r in log:
        if r.get("kind") == "halving" and r["decision"] == PROMOTE:
            found[r["arm"]] = max(r["rung"], found.get(r["arm"], 0))
    return found
