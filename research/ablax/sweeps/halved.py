"""Halving among the trials of a sweep: which of those that have paused go on, by what stands in the sweep's folder.

A trial trains to a rung, is evaluated and saved there, and pauses; its record has the rung's value. It is started again
once looks.jsonl says that it is promoted. Records and log decide, and what was promoted stays so: a controller that
comes later, or is started again, decides alike.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablax.config import RequestError
from ablax.history import higher_is_better
from ablax.run import RunFolder, now, write_json
from ablax.sweeps.cells import Cell, read_plan, read_record, record_path
from ablax.sweeps.halving import (
    PROMOTE,
    STOP,
    WAIT,
    Halving,
    Rung,
    decided,
    entry,
    halve,
    promoted_in,
)
from ablax.sweeps.keys import TRIAL
from ablax.sweeps.look_log import log_looks, read_looks
from ablax.sweeps.tuned import Trial, trials_of


def halving_of(plan: Mapping[str, Any]) -> Halving | None:
    """How a plan that was read halves its trials, if it does."""
    declared = plan.get("analysis", {}).get("halving")
    return None if declared is None else Halving(**declared)


def check_halving(rule: Halving, cells: Sequence[Cell], experiments: Mapping[str, Any]) -> None:
    """Refuses rungs that a plan's trials do not come to.

    Raises:
      RequestError: if there are no trials, or one is fitted at once, or not longer than the last rung.
    """
    trials = [cell for cell in cells if TRIAL in cell.links]
    if not trials:
        raise RequestError(
            "halving chooses, so it is for trials alone, and the plan has none; make them by `tuned`, which takes any "
            "candidates as its list, or declare `looks` for arms that are compared"
        )
    for cell in trials:
        one = experiments[cell.folder]
        if hasattr(one.model, "fit"):
            raise RequestError(
                f"arm {cell.arm!r}: a {type(one.model).__name__} is fitted to counts and has no steps to halve; leave "
                "halving out"
            )
        length = one.training.steps
        if length.unit == "epochs":
            raise RequestError(
                f"arm {cell.arm!r}: rungs are steps, and only the data tell how many training.steps={length} are; "
                "write a number of steps"
            )
        steps = length.steps(None, one.training.batch_size * one.data.sequence_length)
        if steps <= rule.rungs[-1]:
            raise RequestError(
                f"arm {cell.arm!r} trains for {steps} steps, and the last of Halving(rungs={rule.rungs}) must come "
                "before that; lower it, or raise training.steps"
            )


def reached_in(record: Mapping[str, Any]) -> dict[int, float]:
    """Rung -> the value that a trial's record has for it."""
    return {int(rung): float(value) for rung, value in record.get("rungs", {}).items()}


def next_rung(sweep: Path, cell: Cell) -> int | None:
    """The step at which a cell pauses next, or None."""
    rule = halving_of(read_plan(sweep)) if TRIAL in cell.links else None
    return rule and rule.after(reached_in(read_record(sweep, cell.folder)))


def is_held_back(sweep: Path, cell: Cell) -> bool:
    """Whether a cell has paused at a rung from which nobody promoted it; who starts it thought it fresh."""
    record = read_record(sweep, cell.folder)
    if record["status"] != "paused":
        return False
    return promoted_in(read_looks(sweep)).get(cell.arm, 0) < max(reached_in(record))


def pause(sweep: Path, cell: Cell, split: str, started: Mapping[str, Any]) -> dict[str, Any]:
    """Records that a trial has paused at its next rung, and its value there on a split; nan where it has none.

    Args:
      started: its record so far.
    """
    plan, rung = read_plan(sweep), next_rung(sweep, cell)
    values = [
        record[plan["metric"]]
        for record in RunFolder(sweep / cell.folder).metrics()
        if (record.get("step"), record.get("split")) == (rung, split) and plan["metric"] in record
    ]
    rungs = {**started.get("rungs", {}), str(rung): values[-1] if values else math.nan}
    record = {**started, "status": "paused", "rungs": rungs}
    write_json(record_path(sweep, cell.folder), record)
    return record


def as_decided(
    sweep: Path,
    plan: Mapping[str, Any],
    rule: Halving,
    trials: Mapping[str, Sequence[Trial]],
    records: Sequence[Mapping[str, Any]],
) -> dict[str, list[Trial]]:
    """The trials, those that have paused as what they are: `running` (promoted), `stopped`, or `paused` still."""
    promoted = promoted_in(read_looks(sweep))
    rungs = _rungs(plan, rule, trials, records, promoted)
    found = {}
    for arm, own in trials.items():
        found[arm] = []
        for trial in own:
            rung = rungs[arm].get(trial.name)
            if trial.status == "paused" and rung is not None:
                stopped = "stopped" if rung.decision == STOP else "paused"
                status = "running" if promoted.get(trial.name, 0) >= rung.rung else stopped
                trial = dataclasses.replace(trial, status=status, rung=rung)
            found[arm].append(trial)
    return found


def _rungs(
    plan: Mapping[str, Any],
    rule: Halving,
    trials: Mapping[str, Sequence[Trial]],
    records: Sequence[Mapping[str, Any]],
    promoted: Mapping[str, int],
) -> dict[str, dict[str, Rung]]:
    """Arm -> trial -> what its value and those of the arm's others decide, as they stand now."""
    cells = zip(plan["cells"], records, strict=True)
    values = {cell["arm"]: reached_in(record) for cell, record in cells if TRIAL in cell["links"]}
    higher = higher_is_better(plan["metric"])
    return {
        arm: halve(
            rule,
            values,
            [trial.name for trial in own],
            promoted,
            [trial.name for trial in own if trial.status == "failed"],
            higher,
        )
        for arm, own in trials.items()
    }


def decide(
    sweep: Path, plan: Mapping[str, Any], rule: Halving, say: Callable[[str], None]
) -> list[Rung]:
    """Decides what can be decided; each decision is logged, and said, once.

    Nobody is promoted before all trials of the arm have begun: these come first in the queue, so nothing waits for it,
    and the best of more go on.
    """
    records = [read_record(sweep, cell["folder"]) for cell in plan["cells"]]
    trials = trials_of([cell["links"] for cell in plan["cells"]], records, plan["metric"])
    log = read_looks(sweep)
    before, fresh = decided(log), []
    for arm, rungs in _rungs(plan, rule, trials, records, promoted_in(log)).items():
        begun = all(trial.status != "missing" for trial in trials[arm])
        fresh += [
            rung
            for rung in rungs.values()
            if rung.decision != WAIT
            and before.get((rung.arm, rung.rung)) != rung.decision
            and (begun or rung.decision != PROMOTE)
        ]
    log_looks(sweep, (), now(), map(entry, fresh))
    for rung in fresh:
        said = f"{rung.arm} at step {rung.rung}: {rung.decision}"
        say(f"{said} (place {rung.place} of {rung.reported}, {rung.value:.4f})")
    return fresh
