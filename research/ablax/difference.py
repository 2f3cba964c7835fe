"""What differs between two runs: knobs, code, libraries, data, results."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablax.config import RequestError
from ablax.history import flat
from ablax.run import RunFolder
from ablax.training.recorded import compare_ledgers

SIZES = ("step", "documents", "tokens", "bytes")
"""Numbers of an evaluation that measure no model."""


def diff(one: str | Path, other: str | Path) -> dict[str, Any]:
    """Compares two run folders, of any kinds of models; no experiment file is read.

    Returns:
      `runs`: both folders. `knobs`, `code`, `versions`, `machine`, `data`: name -> (value in the first, in the second),
      where they differ, None for what one has not; `files`: the same of the hashes of source files, for code that is
      kept in run folders and sweeps, if both have any; code, versions and machine are those of the last start.
      `batches`: whether all were the same by the ledgers (None if that cannot be told), the step at which they part,
      and `said`, the same in words.
      `results`: metric -> (first, second) of the last evaluations, and what
      else of them differs. `related`: how the one descends from the other, or
      None.

    Raises:
      RequestError: if a folder holds no run.
    """
    folders = RunFolder(one).require(), RunFolder(other).require()
    status = [folder.status() for folder in folders]
    starts = [(found.get("starts") or [{}])[-1] for found in status]
    code = [
        {**start.get("code", {}), **found.get("extension_code", {})}
        for start, found in zip(starts, status, strict=True)
    ]
    files = [_files(folder, start) for folder, start in zip(folders, starts, strict=True)]
    return {
        "runs": [str(folder.path) for folder in folders],
        "knobs": differing(*(flat(folder.config()) for folder in folders)),
        "code": differing(*code),
        "files": differing(*files) if all(files) else {},
        "versions": differing(*(start.get("versions", {}) for start in starts)),
        "machine": differing(*(flat(start.get("machine", {})) for start in starts)),
        "data": differing(*(found.get("data") or {} for found in status)),
        "batches": _batches(*folders),
        "results": _results(*folders),
        "related": _related(folders, status),
    }


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> both values, where they are not the same; None for what one has not."""
    names = (*first, *(name for name in second if name not in first))
    return {
        name: (first.get(name), second.get(name))
        for name in names
        if first.get(name) != second.get(name) or (name in first) != (name in second)
    }


def _files(folder: RunFolder, start: Mapping[str, Any]) -> dict[str, str]:
    """Path -> hash of the source files that are kept of a start: by its run, and by the sweep that it is a cell of."""
    name = str(start.get("code", {}).get("sha256", ""))[:16]
    places = [folder.path / "code"]
    places += [parent / "code" / name for parent in folder.path.parents[:3] if name]
    return {
        str(file.relative_to(place)): hashlib.sha256(file.read_bytes()).hexdigest()
        for place in places
        for file in sorted(place.rglob("*.py"))
    }


def _batches(first: RunFolder, second: RunFolder) -> dict[str, Any]:
    try:
        found = compare_ledgers(first.path, second.path)
    except RequestError as error:
        said = f"whether they saw the same batches cannot be told: {error}"
        return {"same": None, "steps": None, "parts_at": None, "said": said}
    told = {"same": found.same, "steps": found.steps, "parts_at": found.parts_at}
    return {**told, "said": str(found)}


def _results(first: RunFolder, second: RunFolder) -> dict[str, tuple[Any, Any]]:
    last = []
    for folder in (first, second):
        records = [record for record in folder.metrics() if record["split"] != "train"]
        last.append(records[-1] if records else {})
    names = (*last[0], *(name for name in last[1] if name not in last[0]))
    return {
        name: (last[0].get(name), last[1].get(name))
        for name in names
        if name not in SIZES
        and (isinstance(last[0].get(name), float) or last[0].get(name) != last[1].get(name))
    }


def _related(folders: tuple[RunFolder, RunFolder], status: list[dict[str, Any]]) -> str | None:
    for child, parent, found in ((0, 1, status[0]), (1, 0, status[1])):
        origin = found.get("parent") or {}
        if origin.get("workdir") == str(folders[parent].path):
            return f"{folders[child].path} goes on from step {origin['step']} of {folders[parent].path}"
    origins = [json.dumps(found.get("parent"), sort_keys=True) for found in status]
    if origins[0] == origins[1] != "null":
        parent = status[0]["parent"]
        return f"both go on from step {parent['step']} of {parent['workdir']}"
    return None
