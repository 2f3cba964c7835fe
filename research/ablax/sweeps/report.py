"""What a sweep says: a table of arms with seed-paired differences from the baseline, and a page with the picture."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablax.config import RequestError, suggest
from ablax.evaluation.scores import measure_of
from ablax.history import higher_is_better, unit
from ablax.run import RunFolder
from ablax.sweeps.audit import audit, changes, flops, same_batches
from ablax.sweeps.branch import tangled
from ablax.sweeps.branches import branches_in
from ablax.sweeps.cells import compared, read_plan, read_record
from ablax.sweeps.documents import over_documents, read_sums, standard_error
from ablax.sweeps.drawings import drawings
from ablax.sweeps.early import comparisons, marked, rule_of, told
from ablax.sweeps.effects import effects_of, overrides_of
from ablax.sweeps.formats import html, latex
from ablax.sweeps.keys import TRIAL
from ablax.sweeps.noise import floor, noise, repeats_of, starred
from ablax.sweeps.page import markdown
from ablax.sweeps.response import responses
from ablax.sweeps.rows import apart_of, metrics_of, row_of
from ablax.sweeps.scaling import scaling_of
from ablax.sweeps.statistics import Comparison, compare, diverged
from ablax.sweeps.trials import tuning_in


def report(
    sweep: Path | str, metric: str | None = None, baseline: str | None = None
) -> dict[str, Any]:
    """Compares the arms of a sweep.

    Args:
      sweep: the sweep's folder.
      metric: what arms are compared by; what the plan says when None.
      baseline: the arm that they are compared with; the plan's when None.

    Returns:
      `metric`, `unit`, `baseline`, `experiment`; `exploratory`: what of these is not the plan's; `arms`: one dict per
      comparable arm, best mean first; `not_comparable`: arms whose metric means something else, each with the reason;
      `noise`: see `Noise`; `effects`: see `Effect`, None without a factorial plan; `responses`: see `Response`; and
      what `audit` returns; `scaling`, `tuning`, `branches`: see those, of plans by `scale`, `tuned`, `branch`.

    Raises:
      RequestError: if the folder holds no sweep, or no finished cell has the metric.
    """
    sweep = Path(sweep)
    plan = compared(whole := read_plan(sweep))
    records = {folder: read_record(sweep, folder) for folder in _folders(whole)}
    by_arm: dict[str, dict[int, dict]] = {arm: {} for arm in plan["arms"]}
    for cell in plan["cells"]:
        # A repeat is no further seed.
        if records[cell["folder"]]["status"] == "finished" and not cell.get("repeat"):
            by_arm[cell["arm"]][cell["seed"]] = records[cell["folder"]]
    if metric is None:
        metric = str(plan["metric"])
    else:
        _check_metric(metric, by_arm)
    if baseline is not None and baseline not in by_arm:
        raise RequestError(f"--baseline={baseline}: no such arm{suggest(baseline, by_arm)}")
    frozen = {"metric": plan["metric"], "baseline": plan["baseline"]} | plan.get("analysis", {})
    baseline = str(baseline or plan["baseline"])
    found = {"metric": metric, "baseline": baseline}
    exploratory = [
        f"{n} {v} in place of the plan's {frozen[n]}" for n, v in found.items() if v != frozen[n]
    ]
    plan = {**plan, "baseline": baseline}
    reasons = _reasons(sweep, plan, records, by_arm, metric)
    values = {
        arm: {seed: float(run["metrics"][metric]) for seed, run in by_arm[arm].items()}
        for arm, why in reasons.items()
        if why is None
    }
    rule = None if exploratory else rule_of(plan)
    bound = tangled(plan)
    if baseline in values and rule:
        against = comparisons(plan, rule, values)
    elif baseline in values:
        against = compare(values, baseline, plan["arms"], bound)
    else:
        why = reasons.get(baseline) or "none of its cells has finished"
        refused = Comparison(0, None, why=f"no baseline: {baseline}: {why}")
        against = dict.fromkeys(values, refused)
    sums = _sums(sweep, plan, records, metric, values)
    noises = noise(
        {arm: own for arm, own in values.items() if arm not in {*diverged(values), *bound}},
        repeats_of(plan, records, metric, values),
        [e for own in sums.values() for s in own.values() if (e := standard_error([(1, [s])]))],
    )
    checked = audit(sweep, plan, marked(plan, rule, values, records) if rule else records)
    arms = []
    for arm, own in values.items():
        row = row_of(arm, by_arm[arm], own, against.get(arm), arm in bound)
        if arm != baseline:
            # A look takes the plan's first seeds, whatever else has finished.
            first = against[arm].n if rule and arm in against else None
            row |= {
                "same_batches": same_batches(sweep, plan, arm, values),
                "changes": changes(sweep, plan, arm),
                **over_documents(sums.get(arm, {}), sums.get(baseline, {}), first),
            }
            count = next((one.shape[1] for one in sums.get(arm, {}).values()), 0)
            row["floor"] = floor(noises, row["n"], row["evaluation"], count)
            row["star"] = starred(row["difference"], row["p_holm"], row["floor"])
        row["exploratory"] = bool(exploratory) or arm in checked["added"]
        spent = [flops(sweep / c["folder"]) for c in _cells(plan, arm) if c["seed"] in own]
        known = [one for one in spent if one is not None]
        row["flops"] = sum(known) / len(known) if known else None
        arms.append(row)
    sign = -1 if higher_is_better(metric) else 1
    return {
        "experiment": plan["experiment"],
        "metric": metric,
        "unit": unit(metric),
        "baseline": baseline,
        "exploratory": exploratory,
        "looks": told(sweep, plan, rule, values) if rule and baseline in values else [],
        "arms": sorted(arms, key=lambda row: (math.isnan(row["mean"]), sign * row["mean"])),
        "not_comparable": [apart_of(arm, by_arm[arm], why) for arm, why in reasons.items() if why],
        "noise": dataclasses.asdict(noises),
        **effects_of(plan, values),
        "responses": [*map(dataclasses.asdict, responses(overrides_of(plan), values, metric))],
        "scaling": scaling_of(plan, values, metric),
        "tuning": tuning_in(sweep, whole),
        "branches": branches_in(sweep, whole, values),
        **checked,
    }


def _folders(plan: Mapping[str, Any]) -> list[str]:
    """The cells that a report counts: all but trials, of which it says what tuning did."""
    return [cell["folder"] for cell in plan["cells"] if TRIAL not in cell.get("links", {})]


def _cells(plan: Mapping[str, Any], arm: str) -> list[Mapping[str, Any]]:
    """The cells of an arm, without repeats."""
    return [cell for cell in plan["cells"] if cell["arm"] == arm and not cell.get("repeat")]


def _reasons(
    sweep: Path,
    plan: Mapping[str, Any],
    records: Mapping[str, dict],
    by_arm: Mapping[str, Mapping[int, dict]],
    metric: str,
) -> dict[str, str | None]:
    """Arm -> why it must not stand beside the baseline, or None; of those that have results."""
    folders = [cell["folder"] for cell in plan["cells"]]
    rules = {folder: _rule(sweep / folder, records[folder], metric) for folder in folders}
    rule = next((rules[cell["folder"]] for cell in _cells(plan, plan["baseline"])), {})
    return {
        arm: _why_apart(runs, metric) or _other_rule(plan, rules, arm, rule)
        for arm, runs in by_arm.items()
        if runs
    }


def _sums(
    sweep: Path,
    plan: Mapping[str, Any],
    records: Mapping[str, dict],
    metric: str,
    values: Mapping[str, Mapping[int, float]],
) -> dict[str, dict[int, Any]]:
    """Arm -> seed -> sums over documents of the trained model, where all that finished have them."""
    found = {}
    for arm, own in values.items():
        folders = {c["seed"]: c["folder"] for c in _cells(plan, arm) if c["seed"] in own}
        read = {seed: read_sums(sweep / f, records[f], metric) for seed, f in folders.items()}
        if all(one is not None for one in read.values()):
            found[arm] = read
    return found


def _check_metric(metric: str, by_arm: Mapping[str, Mapping[int, dict]]) -> None:
    runs = [run for seeds in by_arm.values() for run in seeds.values()]
    known = {name for run in runs for name in metrics_of(run)}
    if not known:
        raise RequestError(
            f"--metric={metric}: no cell has finished, so there is nothing to compare"
        )
    if metric not in known:
        raise RequestError(f"--metric={metric}: no finished cell has it{suggest(metric, known)}")


def _rule(folder: Path, record: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """How a metric's last evaluation cut documents and chose tokens; context lengths are the models' own affair."""
    metrics, measure = record.get("metrics", {}), measure_of(metric)
    suffix = "" if measure == "likelihood" else f"-{measure}"
    path = RunFolder(folder).evals / f"{metrics.get('split')}-{metrics.get('step')}{suffix}.json"
    if not path.is_file():
        return {}
    identity = json.loads(path.read_text(encoding="utf-8"))["identity"]
    rule = {name: identity[name] for name in ("document_rule", "first_token", "end")}
    return rule if measure == "likelihood" else rule | identity["details"]


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
    """Why an arm's metric must not stand beside the others', or None; other measures have names of their own."""
    for run in runs.values():
        if run["metrics"].get("comparable") is False and measure_of(metric) == "likelihood":
            return str(run["metrics"].get("reason") or "its evaluation is marked as not comparable")
        if run["metrics"].get(metric) is None:
            return f"it has no {metric}"
    return None


def write(
    sweep: Path | str, metric: str | None = None, baseline: str | None = None
) -> dict[str, Any]:
    """Compares the arms (see `report`) and writes what it found into the sweep's folder.

    Returns:
      What `report` returns, with the paths `page` (report.md), `html` (report.html), `latex` (report.tex), `picture`
      (curves.png), `differences` (differences.png), `response` (responses.png) and `scale` (scaling.png); None for a
      picture of nothing.
    """
    sweep = Path(sweep)
    found = report(sweep, metric, baseline)
    drawn, night = drawings(sweep, found)
    pictures = {shown: path for shown, path in drawn.items() if path}
    files = {
        "page": sweep / "report.md",
        "html": sweep / "report.html",
        "latex": sweep / "report.tex",
    }
    names = {shown: path.name for shown, path in pictures.items()}
    files["page"].write_text(markdown(found, names), encoding="utf-8")
    files["html"].write_text(html(found, pictures, night), encoding="utf-8")
    files["latex"].write_text(latex(found), encoding="utf-8")
    kinds = ("picture", "differences", "response", "scale")
    paths = {**files, **dict(zip(kinds, drawn.values(), strict=True))}
    return {**found, **{name: path and str(path) for name, path in paths.items()}}
