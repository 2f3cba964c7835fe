"""Who descends from whom: forks and runs that took another's parameters, by what their run.json says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def parents_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Path of a run -> path of its parent, for parents in the list.

    A parent is found by the folder that it had; after the runs have moved, by its fingerprint and its folder's name.
    """
    runs = [row for row in rows if row["kind"] == "run"]
    by_folder = {row["workdir"]: row["path"] for row in runs}
    found = {}
    for row in runs:
        parent = row.get("parent") or {}
        folder, fingerprint = parent.get("workdir"), parent.get("fingerprint")
        if not folder:
            continue
        if folder in by_folder:
            found[row["path"]] = by_folder[folder]
            continue
        alike = [
            other["path"]
            for other in runs
            if other["path"] != row["path"]
            and fingerprint
            and other.get("fingerprint") == fingerprint
            and Path(other["workdir"]).name == Path(folder).name
        ]
        if len(alike) == 1:
            found[row["path"]] = alike[0]
    return found


def tree(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a picture of the runs that have a parent or a child."""
    parents = parents_of(rows)
    by_path = {row["path"]: row for row in rows}
    children: dict[str, list[str]] = {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)
    lines: list[str] = []
    pending = [(path, 0) for path in sorted(set(children) - set(parents), reverse=True)]
    while pending:
        path, depth = pending.pop()
        row = by_path[path]
        origin = row.get("parent") or {}
        way = "takes parameters of" if "taken" in origin else "forked at"
        how = f" ({way} step {origin.get('step')})" if depth else ""
        lines.append(f"{'   ' * depth}{path}{how}: {row.get('status')}")
        pending += [(child, depth + 1) for child in sorted(children.get(path, ()), reverse=True)]
    return lines
