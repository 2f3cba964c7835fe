"""A report's rows: one arm's numbers, with what its runs cost."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ablax.difference import SIZES
from ablax.sweeps.statistics import Comparison, seeds_needed, summary


def metrics_of(run: Mapping[str, Any]) -> dict[str, float]:
    """What a run measured; sizes of the split and the step are none."""
    return {
        name: value
        for name, value in run["metrics"].items()
        if isinstance(value, float) and name not in SIZES
    }


def _costs(runs: Mapping[int, dict]) -> dict[str, Any]:
    """Means over the seeds of what the runs cost; and the split on which they were measured."""
    found = {"split": next(iter(runs.values()))["metrics"].get("split", "validation")}
    for name in ("parameters", "seconds", "tokens_per_second"):
        known = [run[name] for run in runs.values() if run.get(name) is not None]
        found[name] = sum(known) / len(known) if known else None
    return found


def row_of(
    arm: str,
    runs: Mapping[int, dict],
    values: Mapping[int, float],
    comparison: Comparison | None,
    tangled: bool,
) -> dict[str, Any]:
    found = summary(values)
    against = comparison or Comparison(found.n, None)
    return {
        **dataclasses.asdict(against),
        "arm": arm,
        **dataclasses.asdict(found),
        "seeds_needed": _seeds_needed(against),
        **_costs(runs),
        "values": dict(sorted(values.items())),
        **dict.fromkeys(("same_batches", "changes", "evaluation", "these_models", "these_seeds")),
        "floor": None,
        "star": False,
        "tangled": tangled,
    }


def _seeds_needed(comparison: Comparison) -> int | None:
    if comparison.interval is None or not comparison.difference or comparison.sd is None:
        return None
    return seeds_needed(comparison.difference, comparison.sd)


def apart_of(arm: str, runs: Mapping[int, dict], why: str) -> dict[str, Any]:
    """The means of an arm's own metrics."""
    numbers: dict[str, dict[int, float]] = {}
    for seed, run in runs.items():
        for name, value in metrics_of(run).items():
            numbers.setdefault(name, {})[seed] = value
    means = {name: summary(found).mean for name, found in numbers.items()}
    return {"arm": arm, "n": len(runs), "reason": why, "metrics": means, **_costs(runs)}
