"""What was planned, what was run, and what differs: cells, code, libraries, knobs, batches."""

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablax.config import RequestError
from ablax.difference import differing, flat
from ablax.run import RunFolder
from ablax.sweeps.cells import APART, last_lines
from ablax.training.recorded import compare_ledgers


def audit(
    sweep: Path, plan: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Compares a sweep's plan with what lies in its folder.

    Returns:
      `planned`: number of cells; `statuses`: how many of each status. `unfinished`: cells that are not finished, with
      their error and the `log`'s last lines. `others`: cell -> in what its code, libraries or frozen analysis are not
      those of most cells, or of the plan. `added`: arms that joined the plan when results were there.
    """
    unfinished = [
        {
            "cell": folder,
            "status": record["status"],
            "error": record.get("error"),
            "log": last_lines(sweep, folder) if record["status"] == "failed" else [],
        }
        for folder, record in records.items()
        if record["status"] not in ("finished", "unneeded")
    ]
    return {
        "planned": len(records),
        "statuses": dict(collections.Counter(record["status"] for record in records.values())),
        "unfinished": unfinished,
        "others": _others(sweep, plan, list(records)),
        "added": [arm for arm in plan["arms"] if arm in plan.get("late", {})],
    }


def _others(sweep: Path, plan: Mapping[str, Any], folders: list[str]) -> dict[str, list[str]]:
    runs = {folder: RunFolder(sweep / folder) for folder in folders}
    status = {folder: run.status() for folder, run in runs.items() if run.exists()}
    starts = {
        folder: [_versions(start) for start in found.get("starts", [])]
        for folder, found in status.items()
    }
    names = {name for found in starts.values() for start in found for name in start}
    usual = {
        name: collections.Counter(start.get(name) for own in starts.values() for start in own)
        for name in names
    }
    common = {name: counts.most_common(1)[0][0] for name, counts in usual.items()}
    others: dict[str, list[str]] = {}
    for folder, own in starts.items():
        odd = [
            f"{name} {_short(start.get(name))}, where most have {_short(common[name])}"
            for start in own
            for name in sorted(names)
            if start.get(name) != common[name]
        ]
        frozen = (status[folder].get("sweep") or {}).get("analysis_sha")
        if frozen is not None and frozen != plan.get("analysis_sha"):
            odd.append(
                f"analysis {_short(frozen)}, where the plan has {_short(plan.get('analysis_sha'))}"
            )
        if odd:
            others[folder] = list(dict.fromkeys(odd))
    return others


def _versions(start: Mapping[str, Any]) -> dict[str, Any]:
    """The code and the libraries of one start of a run."""
    code = (start.get("code") or {}).get("sha256")
    return {**start.get("versions", {}), **({"code": code} if code else {})}


def _short(value: Any) -> str:
    return "none" if value is None else str(value)[:12]


def same_batches(
    sweep: Path, plan: Mapping[str, Any], arm: str, values: Mapping[str, Mapping[int, float]]
) -> bool | None:
    """Whether an arm saw the baseline's batches, by the ledgers of the seeds that both have; None without ledgers."""
    baseline = plan["baseline"]
    folders = {
        (cell["arm"], cell["seed"]): sweep / cell["folder"]
        for cell in plan["cells"]
        if not cell.get("repeat")
    }
    seeds = values[arm].keys() & values.get(baseline, {}).keys()
    try:
        pairs = [compare_ledgers(folders[baseline, seed], folders[arm, seed]) for seed in seeds]
    except RequestError:
        return None
    return all(pair.same for pair in pairs) if pairs else None


def changes(sweep: Path, plan: Mapping[str, Any], arm: str) -> dict[str, Any] | None:
    """Knob -> (the baseline's value, the arm's) where the runs' configurations differ; None without any."""
    configs = []
    for name in (plan["baseline"], arm):
        folders = [RunFolder(sweep / c["folder"]) for c in plan["cells"] if c["arm"] == name]
        there = next((folder for folder in folders if folder.exists()), None)
        if there is None:
            return None
        configs.append(flat(there.config()))
    return {path: pair for path, pair in differing(*configs).items() if path not in APART}


def flops(folder: Path) -> float | None:
    """Those of the model in training a cell, recomputation not counted, and of a branch those of its own steps; None of
    a model for which nobody counted them.

    The records hold operations and tokens per second, whose ratio is what a token costs; the configuration and the last
    step say how many there were.
    """
    run = RunFolder(folder)
    if not run.exists():
        return None
    status = run.status()
    parent = status.get("parent") or {}
    before = parent["step"] if "seconds" in parent else 0
    own = (r for r in run.metrics() if r["step"] > before)
    record = next((r for r in own if r.get("model_flops_per_second")), None)
    if record is None:
        return None
    config = run.config()
    tokens = config["training"]["batch_size"] * config["data"]["sequence_length"]
    per_token = record["model_flops_per_second"] / record["tokens_per_second"]
    return per_token * tokens * (status.get("step", 0) - before)
