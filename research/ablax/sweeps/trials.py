"""Trials and trunks, as they stand in a sweep's folder: who won, who waits for them, who is tried once more."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablax.run import RunFolder, write_json
from ablax.sweeps.cells import read_record, record_path
from ablax.sweeps.halved import as_decided, halving_of
from ablax.sweeps.keys import BESIDE, BRANCH, TRIAL, WINNER
from ablax.sweeps.tuned import Trial, has_ended, ready, trials_of, tuning


def trials_in(sweep: Path, plan: Mapping[str, Any]) -> dict[str, list[Trial]]:
    """Arm -> its trials, as they stand in the sweep's folder; empty for a plan without tuning."""
    cells = [cell.get("links", {}) for cell in plan["cells"]]
    records = [read_record(sweep, cell["folder"]) for cell in plan["cells"]]
    trials = trials_of(cells, records, plan["metric"])
    rule = halving_of(plan)
    return trials if rule is None else as_decided(sweep, plan, rule, trials, records)


def tuning_in(sweep: Path, plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a report says of a plan's tuning; see `tuning`."""
    return tuning(trials_in(sweep, plan), plan["metric"])


def held_cells(sweep: Path, plan: Mapping[str, Any]) -> set[str]:
    """The cells that wait for trials or their trunk, by folder, the trials that halving holds, and those that come too
    late: of arms whose winner has begun. Another winner would be trained for some of the arm's seeds only."""
    trials = trials_in(sweep, plan)
    begun = {
        cell["links"][WINNER]["of"]
        for cell in plan["cells"]
        if WINNER in cell["links"] and RunFolder(sweep / cell["folder"]).exists()
    }
    halved = {t.name for own in trials.values() for t in own if t.status in ("paused", "stopped")}
    return {
        cell["folder"]
        for cell in plan["cells"]
        if not ready(cell["links"], trials)
        or cell["links"].get(TRIAL, {}).get("of") in begun
        or (TRIAL in cell["links"] and cell["arm"] in halved)
        or _waits(sweep, cell)
    }


def _waits(sweep: Path, cell: Mapping[str, Any]) -> bool:
    link = cell["links"].get(BRANCH)
    return link is not None and not has_ended(read_record(sweep, link["of"]))


def reopen(sweep: Path, plan: Mapping[str, Any]) -> None:
    """Lets winners and branches wait for the trials and trunks that failed before and are tried once more."""
    late = held_cells(sweep, plan)
    for cell in plan["cells"]:
        record = read_record(sweep, cell["folder"])
        awaited = cell["links"].keys() & BESIDE and cell["folder"] not in late
        if awaited and record["status"] == "failed":
            record.pop("last_lines", None)
            write_json(record_path(sweep, cell["folder"]), {**record, "again": True})
