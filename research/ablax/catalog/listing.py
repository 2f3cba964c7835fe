"""What a list of runs shows: those that were asked for, how their knobs differ, and what they occupy."""

import collections
from pathlib import Path
from typing import Any

from ablax.catalog.index import Index
from ablax.catalog.where import matching
from ablax.history import outermost

APART = ("seed", "name")
"""Knobs that tell no two experiments apart."""


def runs(root: str | Path, where: str | None = None) -> list[dict[str, Any]]:
    """Every run and sweep at or under a root.

    Args:
      where: a condition, such as `metrics.bits_per_byte<2 and status=finished` (see `ablax.catalog.where`).

    Returns:
      One dict each: `path` (relative to the root), `workdir`, `kind` ("run" or "sweep"), `name`, `status`, `metrics`
      (the last evaluation), `seconds`; of a run also `step`, `parameters`, `parent`, `seed`, `tags`, `notes`,
      `checkpoints`, `fingerprint` and `differs` (see `differing_knobs`); of a sweep `cells`, `finished`, `failed`,
      `baseline`, `plan`.

    Raises:
      RequestError: if the root does not exist, or the condition is malformed.
    """
    return listed(Index(root), where)


def listed(index: Index, where: str | None = None) -> list[dict[str, Any]]:
    """What `runs` returns, of an index."""
    rows = index.rows()
    if where:
        wanted = matching(index, where)
        rows = [row for row in rows if row["path"] in wanted]
    differ = differing_knobs(index, rows)
    return [{**row, "differs": differ.get(row["path"], {})} for row in rows]


def differing_knobs(index: Index, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Path of a run -> the knobs in which it differs from most of the listed runs of its name."""
    groups: dict[Any, list[str]] = {}
    for row in rows:
        if row["kind"] == "run":
            groups.setdefault(row["name"], []).append(row["path"])
    knobs: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for row in index.select("select path, name, value from knobs"):
        knobs[row["path"]][row["name"]] = row["value"]
    found: dict[str, dict[str, Any]] = {}
    for paths in groups.values():
        names = sorted({name for path in paths for name in knobs[path]} - set(APART))
        for name in names:
            counts = collections.Counter(knobs[path].get(name) for path in paths)
            if len(counts) == 1:
                continue
            ((usual, _),) = counts.most_common(1)
            for path in paths:
                if (value := knobs[path].get(name)) != usual and name in knobs[path]:
                    found.setdefault(path, {})[name] = value
    return {path: outermost(changes) for path, changes in found.items()}
