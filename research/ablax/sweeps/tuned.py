"""The same tuning for every arm: trials on validation, and the winner run again, with fresh seeds, on test."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ablax.config import RequestError
from ablax.history import higher_is_better
from ablax.sweeps.draws import random
from ablax.sweeps.halving import SELECTION, Rung
from ablax.sweeps.keys import ARM, SEED, TRIAL, WINNER

SPLIT = "evaluation.split"
FEWEST_ON_A_GRID = 3
"""Values of a knob, fewer of which have no edge that is worth a word."""


def tuned(
    arms: Iterable[Mapping[str, Any]],
    knobs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    trials: int | None = None,
    *,
    seeds: Sequence[int] = (1, 2, 3),
    trial_seed: int = 0,
    select_on: str = "validation",
    report_on: str = "test",
) -> list[dict[str, Any]]:
    """Every arm with the same trials, and then its best trial with fresh seeds.

    What wins among trials looks better than it is, by the luck of its seed and split; so the winner is trained anew and
    measured on another split, and arms are compared by that alone.

    Args:
      arms: named; the first is the baseline.
      knobs: path -> distribution or values, of which `trials` are drawn (see `random`), the same for every arm; or the
        trials themselves, as a list of overrides.
      seeds: of the winners' runs.
      trial_seed: of all trials' runs, and of the draws.
      select_on, report_on: splits on which trials and winners are evaluated.

    Raises:
      RequestError: if an arm has no name or sets a tuned knob, there are no trials, or nothing is fresh.
    """
    draws = [dict(d) for d in (_drawn(knobs, trials, trial_seed))]
    if not draws:
        raise RequestError("tuned: there are no trials; give `trials`, or a list of overrides")
    if trial_seed in seeds or select_on == report_on:
        raise RequestError(
            f"tuned: winners need fresh seeds and another split than trials, not seeds={tuple(seeds)} with trial_seed="
            f"{trial_seed} and report_on={report_on!r}"
        )
    cells = []
    for arm in arms:
        if ARM not in arm:
            raise RequestError(f"tuned: {dict(arm)} has no name; give each arm its own by `named`")
        for path in {path for draw in draws for path in (*draw, SPLIT, SEED)} & arm.keys():
            raise RequestError(f"tuned: arm {arm[ARM]!r} sets {path}, which tuning sets; leave it")
        for index, draw in enumerate(draws):
            cell = {**arm, **draw, SPLIT: select_on, SEED: trial_seed}
            cell[ARM] = name_of(arm[ARM], index)
            cells.append({**cell, TRIAL: {"of": arm[ARM], "trial": index, "draw": draw}})
        cells += [
            {**arm, SPLIT: report_on, SEED: seed, WINNER: {"of": arm[ARM], "trials": len(draws)}}
            for seed in seeds
        ]
    return cells


def _drawn(knobs: Any, trials: int | None, seed: int) -> Sequence[Mapping[str, Any]]:
    if isinstance(knobs, Mapping):
        return random(trials or 0, knobs, seed)
    if trials not in (None, len(knobs)):
        raise RequestError(f"tuned: trials={trials}, but {len(knobs)} are listed; leave it out")
    return knobs


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial of an arm as far as it got.

    Attributes:
      status: of its record; `running` while it will go on or be tried again, `stopped` if halving let others go on.
      value: the metric of a finished one.
      rung: where it has paused, if nobody promoted it from there.
    """

    arm: str
    index: int
    draw: Mapping[str, Any]
    status: str
    value: float | None
    rung: Rung | None = None

    @property
    def name(self) -> str:
        """What its cell is called."""
        return name_of(self.arm, self.index)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ("finished", "failed", "stopped")


def name_of(arm: str, index: int) -> str:
    """A trial's name among the arms of a plan."""
    return f"{arm},trial {index}"


def trials_of(
    cells: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], metric: str
) -> dict[str, list[Trial]]:
    """Arm -> its trials in order.

    Args:
      cells: the plan's overrides, or only what ties cells together; `records`: theirs, in the same order.
    """
    found: dict[str, list[Trial]] = {}
    for cell, record in zip(cells, records, strict=True):
        if note := cell.get(TRIAL):
            value = (
                record.get("metrics", {}).get(metric) if record["status"] == "finished" else None
            )
            status = record["status"]
            if status == "failed" and not has_ended(record):
                status = "running"
            trial = Trial(note["of"], note["trial"], note["draw"], status, value)
            found.setdefault(note["of"], []).append(trial)
    return {arm: sorted(own, key=lambda trial: trial.index) for arm, own in found.items()}


def has_ended(record: Mapping[str, Any]) -> bool:
    """Whether nothing more will come of a cell: one that failed is tried again until the controller has given it up."""
    if record["status"] == "failed":
        return not record.get("again", True) or "last_lines" in record
    return record["status"] == "finished"


def ready(cell: Mapping[str, Any], trials: Mapping[str, Sequence[Trial]]) -> bool:
    """Whether a cell can start: a winner's when every trial of its arm has ended, all others at once."""
    wish = cell.get(WINNER)
    if wish is None:
        return True
    own = trials.get(wish["of"], ())
    return len(own) == wish["trials"] and all(trial.ended for trial in own)


def winner(trials: Sequence[Trial], metric: str) -> Trial:
    """The best of an arm's trials, the first of equal ones; a pure function, so that all controllers agree.

    A trial that failed or diverged has used up its part of the budget and cannot win.

    Raises:
      RequestError: if none has a finite metric.
    """
    known = [t for t in trials if t.value is not None and math.isfinite(t.value)]
    if not known:
        raise RequestError(
            f"none of {len(trials)} trials of arm {trials[0].arm!r} has a finite {metric}; tune within other ranges"
        )
    sign = -1 if higher_is_better(metric) else 1
    return min(known, key=lambda trial: (sign * (trial.value or 0.0), trial.index))


def expected_best(values: Sequence[float], higher: bool = False) -> Float[np.ndarray, " trials"]:
    """Expected best of 1, 2, ... n trials, drawn with replacement from those (Dodge et al. 2019, arXiv:1909.03004,
    equation 5)."""
    ordered = np.sort(np.array(values, np.float64))
    n = len(ordered)
    ranks = np.arange(1, n + 1)
    budget = np.arange(1, n + 1)[:, None]
    if higher:
        chances = (ranks / n) ** budget - ((ranks - 1) / n) ** budget
    else:
        chances = ((n - ranks + 1) / n) ** budget - ((n - ranks) / n) ** budget
    return chances @ ordered


def edges(trials: Sequence[Trial], best: Trial) -> list[str]:
    """Knobs of which the winner has the smallest or largest value that was tried: the optimum may lie beyond."""
    found = []
    for path, value in best.draw.items():
        tried = {t.draw.get(path) for t in trials}
        numbers = [v for v in tried if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(tried) >= FEWEST_ON_A_GRID and value in (min(numbers), max(numbers)):
            found.append(path)
    return found


def lines_of(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What `tuning` found, in sentences."""
    lines = []
    for arm, one in found.items():
        if one["winner"] is None:
            lines.append(f"{arm}: {one['why']}")
            continue
        knobs = ", ".join(f"{path} {value}" for path, value in one["winner"].items())
        line = (
            f"{arm}: {one['trials']} trials, {one['failed']} without a result; the best had {knobs}"
        )
        line += f", {one['value']:.4f}"
        if one["edges"]:
            line += f", at the edge of what was tried in {', '.join(one['edges'])}: a better one may lie beyond"
        curve = ", ".join(f"{best:.4f}" for best in one["curve"])
        lines.append(line + f". Expected best of 1, 2, ... trials: {curve}" * bool(curve))
    for arm, one in found.items():
        if one["stopped"]:
            told = (
                "trial {trial} at step {rung} (place {place} of {reported})".format(**s)
                for s in one["stopped"]
            )
            lines.append(f"{arm}: stopped by halving: {', '.join(told)}")
    if any(one["stopped"] for one in found.values()):
        lines.append(SELECTION)
    if lines:
        lines.append(
            "trials are compared on the split of selection; the table has the winners alone, trained anew with other "
            "seeds, on the split of the report"
        )
    return lines


def tuning(trials: Mapping[str, Sequence[Trial]], metric: str) -> dict[str, dict[str, Any]]:
    """What a report says of tuning, per arm: `trials`, `failed`, `winner` (its knobs), `value` on the split of
    selection, `edges`, `curve` (expected best against the number of trials); `why` where no trial has won; `stopped`:
    `trial`, `rung`, `place`, `reported` of each that halving stopped, after which there is no curve: the values of
    those that finished are no draws."""
    found: dict[str, dict[str, Any]] = {}
    for arm, own in trials.items():
        values = [t.value for t in own if t.value is not None and math.isfinite(t.value)]
        stopped = [(t.index, t.rung) for t in own if t.status == "stopped" and t.rung]
        curve = [] if stopped else expected_best(values, higher_is_better(metric)).tolist()
        found[arm] = {
            "trials": len(own),
            "failed": sum(t.ended for t in own) - len(values) - len(stopped),
            "curve": curve,
            "stopped": [
                {"trial": i, "rung": r.rung, "place": r.place, "reported": r.reported}
                for i, r in stopped
            ],
        }
        try:
            best = winner(own, metric)
        except RequestError as error:
            found[arm] |= {"winner": None, "value": None, "edges": [], "why": str(error)}
        else:
            found[arm] |= {"winner": dict(best.draw), "value": best.value, "why": None}
            found[arm]["edges"] = edges(own, best)
    return found
