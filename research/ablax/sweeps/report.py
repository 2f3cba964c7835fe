"""What a sweep says: a table of arms with seed-paired differences from the baseline, and a page with the picture."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablax.config import RequestError, suggest
from ablax.difference import SIZES, differing, flat
from ablax.history import higher_is_better, unit
from ablax.run import RunFolder
from ablax.sweeps.cells import APART, read_plan, read_record
from ablax.sweeps.curves import learning_curves
from ablax.sweeps.forest import differences
from ablax.sweeps.formats import html, latex
from ablax.sweeps.page import markdown
from ablax.sweeps.statistics import Comparison, compare, seeds_needed, summary
from ablax.training.recorded import compare_ledgers

CURVES, FOREST = "curves.png", "differences.png"


def report(sweep: Path | str, metric: str | None = None) -> dict[str, Any]:
    """Compares the arms of a sweep.

    Args:
      sweep: the sweep's folder.
      metric: what arms are compared by; what the sweep was started with when None.

    Returns:
      `metric`, `unit`, `baseline`, `experiment`; `arms`: one dict per comparable arm, best mean first;
      `not_comparable`: arms whose metric means something else, each with the reason; `unfinished`: cells that failed
      or are missing.

    Raises:
      RequestError: if the folder holds no sweep, or no finished cell has the metric.
    """
    sweep = Path(sweep)
    plan = read_plan(sweep)
    records = {cell["folder"]: read_record(sweep, cell["folder"]) for cell in plan["cells"]}
    unfinished = [
        {"cell": folder, "status": record["status"], "error": record.get("error")}
        for folder, record in records.items()
        if record["status"] != "finished"
    ]
    by_arm: dict[str, dict[int, dict]] = {arm: {} for arm in plan["arms"]}
    for cell in plan["cells"]:
        if records[cell["folder"]]["status"] == "finished":
            by_arm[cell["arm"]][cell["seed"]] = records[cell["folder"]]
    if metric is None:
        metric = str(plan["metric"])
    else:
        _check_metric(metric, by_arm)
    baseline = plan["baseline"]
    rules = {
        cell["folder"]: _rule(sweep / cell["folder"], records[cell["folder"]])
        for cell in plan["cells"]
    }
    rule = next((rules[cell["folder"]] for cell in plan["cells"] if cell["arm"] == baseline), {})
    reasons = {
        arm: _why_apart(runs, metric) or _other_rule(plan, rules, arm, rule)
        for arm, runs in by_arm.items()
        if runs
    }
    values = {
        arm: {seed: float(run["metrics"][metric]) for seed, run in by_arm[arm].items()}
        for arm, why in reasons.items()
        if why is None
    }
    if baseline in values:
        compared = compare(values, baseline, plan["arms"])
    else:
        why = reasons.get(baseline) or "none of its cells has finished"
        refused = Comparison(0, None, why=f"no baseline: {baseline}: {why}")
        compared = dict.fromkeys(values, refused)
    arms = []
    for arm, found in values.items():
        comparison = compared.get(arm)
        same = None if arm == baseline else _same_batches(sweep, plan, arm, values)
        changes = None if arm == baseline else _changes(sweep, plan, arm)
        row = _row(arm, by_arm[arm], found, comparison)
        arms.append({**row, "same_batches": same, "changes": changes})
    sign = -1 if higher_is_better(metric) else 1
    return {
        "experiment": plan["experiment"],
        "metric": metric,
        "unit": unit(metric),
        "baseline": baseline,
        "arms": sorted(arms, key=lambda row: sign * row["mean"]),
        "not_comparable": [_apart(arm, by_arm[arm], why) for arm, why in reasons.items() if why],
        "unfinished": unfinished,
    }


def _same_batches(
    sweep: Path, plan: Mapping[str, Any], arm: str, values: Mapping[str, Mapping[int, float]]
) -> bool | None:
    """Whether an arm saw the baseline's batches, by the ledgers of the seeds that both have; None without ledgers."""
    baseline = plan["baseline"]
    folders = {(cell["arm"], cell["seed"]): sweep / cell["folder"] for cell in plan["cells"]}
    seeds = values[arm].keys() & values.get(baseline, {}).keys()
    try:
        pairs = [compare_ledgers(folders[baseline, seed], folders[arm, seed]) for seed in seeds]
    except RequestError:
        return None
    return all(pair.same for pair in pairs) if pairs else None


def _changes(sweep: Path, plan: Mapping[str, Any], arm: str) -> dict[str, Any] | None:
    """Knob -> (the baseline's value, the arm's) where the runs' configurations differ; None without any."""
    configs = []
    for name in (plan["baseline"], arm):
        folders = [RunFolder(sweep / c["folder"]) for c in plan["cells"] if c["arm"] == name]
        there = next((folder for folder in folders if folder.exists()), None)
        if there is None:
            return None
        configs.append(flat(there.config()))
    return {path: pair for path, pair in differing(*configs).items() if path not in APART}


def _check_metric(metric: str, by_arm: Mapping[str, Mapping[int, dict]]) -> None:
    runs = [run for seeds in by_arm.values() for run in seeds.values()]
    known = {name for run in runs for name in _metrics(run)}
    if not known:
        raise RequestError(
            f"--metric={metric}: no cell has finished, so there is nothing to compare"
        )
    if metric not in known:
        raise RequestError(f"--metric={metric}: no finished cell has it{suggest(metric, known)}")


def _metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """What a run measured; sizes of the split and the step are none."""
    return {
        name: value
        for name, value in run["metrics"].items()
        if isinstance(value, float) and name not in SIZES
    }


def _rule(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """How a cell's last evaluation cut documents; context lengths are the models' own affair."""
    metrics = record.get("metrics", {})
    path = RunFolder(folder).evals / f"{metrics.get('split')}-{metrics.get('step')}.json"
    if not path.is_file():
        return {}
    identity = json.loads(path.read_text(encoding="utf-8"))["identity"]
    return {name: identity[name] for name in ("document_rule", "first_token", "end")}


def _other_rule(
    plan: Mapping[str, Any], rules: Mapping[str, dict], arm: str, rule: Mapping[str, Any]
) -> str | None:
    for cell in plan["cells"]:
        own = rules[cell["folder"]]
        if cell["arm"] == arm and own and rule and own != rule:
            other = ", ".join(
                f"{name}={value}" for name, value in own.items() if value != rule[name]
            )
            return f"it was measured by another rule than the baseline ({other})"
    return None


def _why_apart(runs: Mapping[int, dict], metric: str) -> str | None:
    """Why an arm's metric must not stand beside the others', or None."""
    for run in runs.values():
        if run["metrics"].get("comparable") is False:
            return str(run["metrics"].get("reason") or "its evaluation is marked as not comparable")
        if run["metrics"].get(metric) is None:
            return f"it has no {metric}"
    return None


def _costs(runs: Mapping[int, dict]) -> dict[str, Any]:
    """Means over the seeds of what the runs cost."""
    found: dict[str, Any] = {}
    for name in ("parameters", "seconds", "tokens_per_second"):
        known = [run[name] for run in runs.values() if run.get(name) is not None]
        found[name] = sum(known) / len(known) if known else None
    return found


def _row(
    arm: str, runs: Mapping[int, dict], values: Mapping[int, float], comparison: Comparison | None
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
    }


def _seeds_needed(comparison: Comparison) -> int | None:
    if comparison.interval is None or not comparison.difference or comparison.sd is None:
        return None
    return seeds_needed(comparison.difference, comparison.sd)


def _apart(arm: str, runs: Mapping[int, dict], why: str) -> dict[str, Any]:
    """The means of an arm's own metrics."""
    numbers: dict[str, dict[int, float]] = {}
    for seed, run in runs.items():
        for name, value in _metrics(run).items():
            numbers.setdefault(name, {})[seed] = value
    means = {name: summary(found).mean for name, found in numbers.items()}
    return {"arm": arm, "n": len(runs), "reason": why, "metrics": means, **_costs(runs)}


def write(sweep: Path | str, metric: str | None = None) -> dict[str, Any]:
    """Compares the arms (see `report`) and writes what it found into the sweep's folder.

    Returns:
      What `report` returns, with the paths `page` (report.md), `html` (report.html), `latex` (report.tex), `picture`
      (curves.png) and `differences` (differences.png); None for a picture of nothing.
    """
    sweep = Path(sweep)
    found = report(sweep, metric)
    other = [row["arm"] for row in found["not_comparable"]]
    drawn = {
        "Learning curves": sweep / CURVES
        if learning_curves(sweep, sweep / CURVES, other)
        else None,
        "Differences from the baseline": sweep / FOREST
        if differences(found, sweep / FOREST)
        else None,
    }
    pictures = {shown: path for shown, path in drawn.items() if path}
    files = {
        "page": sweep / "report.md",
        "html": sweep / "report.html",
        "latex": sweep / "report.tex",
    }
    names = {shown: path.name for shown, path in pictures.items()}
    files["page"].write_text(markdown(found, names), encoding="utf-8")
    files["html"].write_text(html(found, pictures), encoding="utf-8")
    files["latex"].write_text(latex(found), encoding="utf-8")
    curves, forest = drawn.values()
    paths = {**files, "picture": curves, "differences": forest}
    return {**found, **{name: path and str(path) for name, path in paths.items()}}
