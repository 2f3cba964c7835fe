"""looks.jsonl: every look at a sweep that was made before its end, and what it decided; one JSON object a line."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ablax.sweeps.looks import OPEN, Verdict
from ablax.training.records import Records

LOG_FILE = "looks.jsonl"


def log_looks(
    sweep: Path, verdicts: Iterable[Verdict], when: str, others: Iterable[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Appends the looks that the sweep's log does not hold yet, with the decision after the last one of each arm.

    Args:
      when: the time, ISO 8601.
      others: records of another kind to append, such as a rung's.

    Returns:
      What was appended. Two controllers may append the same look; its numbers are the same.
    """
    log = read_looks(sweep)
    known = {(r["arm"], tuple(r["seeds"])): r for r in log if "seeds" in r}
    fresh: list[dict[str, Any]] = []
    for verdict in verdicts:
        for look in verdict.looks:
            last = look is verdict.looks[-1]
            record = {
                "when": when,
                **dataclasses.asdict(look),
                "decision": verdict.state if last else OPEN,
                "p_holm": verdict.p_holm if last else None,
            }
            old = known.get((look.arm, look.seeds))
            # Holm's adjustment may decide on an arm when others are, without a new look at it.
            if old is None or (last and old["decision"] != verdict.state):
                fresh.append(record)
    said = [{key: value for key, value in record.items() if key != "when"} for record in log]
    fresh += [{"when": when, **record} for record in others if dict(record) not in said]
    if fresh:
        records = Records(sweep / LOG_FILE)
        try:
            for record in fresh:
                records.write(record)
        finally:
            records.close()
    return fresh


def read_looks(sweep: Path) -> list[dict[str, Any]]:
    """The log's records, oldest first; a line that a crash cut short is left out."""
    try:
        lines = (sweep / LOG_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def changed_since(
    records: Iterable[Mapping[str, Any]], verdicts: Mapping[str, Verdict]
) -> list[str]:
    """The looks of which the numbers are not what the log says: cells were changed, or run again, after a look."""
    now = {(look.arm, look.seeds): look for one in verdicts.values() for look in one.looks}
    return [
        f"{look.arm} at {len(look.seeds)} seeds: t was {record['t']}, now {look.t}"
        for record in records
        if "seeds" in record
        and (look := now.get((record["arm"], tuple(record["seeds"])))) is not None
        and record["t"] != look.t
    ]
