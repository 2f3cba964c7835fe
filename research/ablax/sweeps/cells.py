"""Cells of a sweep: an arm with a seed, its folder, and how it went.

A sweep's folder holds `sweep.json` (the plan), and for each cell `ARM/seedK` (a run folder) and `ARM/seedK.json` (its
record). Everything is written to a temporary name and renamed, so a reader never sees half of a file.
"""

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablax.config import RequestError
from ablax.run import write_json
from ablax.sweeps.plan import ARM, SEED

PLAN_FILE = "sweep.json"
LONGEST_NAME = 80
APART = ("seed", "name")
"""Knobs in which cells of one arm may differ."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """An arm with a seed.

    Attributes:
      overrides: all that the plan sets, the seed included, the arm's name not.
      folder: its run folder, relative to the sweep's.
    """

    arm: str
    seed: int
    overrides: Mapping[str, Any]
    folder: str


def cells_of(plan: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """The cells of a plan, in its order, with names and folders.

    Arms without a name are called after their overrides, with as much of each path as tells the paths apart.

    Raises:
      RequestError: if the plan is empty or malformed, names two arms alike, or has a cell twice.
    """
    if not plan:
        raise RequestError(
            "the plan is empty: get_sweep() must return at least one dict of overrides"
        )
    for overrides in plan:
        if not isinstance(overrides, Mapping) or not all(
            isinstance(path, str) for path in overrides
        ):
            raise RequestError(
                f"get_sweep() must return dicts of dotted path -> value, not {overrides!r}"
            )
    short = _short_paths({path for overrides in plan for path in overrides})
    arms, cells = {}, []
    for overrides in plan:
        changes = {path: value for path, value in overrides.items() if path not in (ARM, SEED)}
        name = str(overrides.get(ARM) or _describe(changes, short))
        if arms.setdefault(name, changes) != changes:
            raise RequestError(f"two different arms are named {name!r}; give each its own name")
        seed = overrides.get(SEED, 0)
        if not isinstance(seed, int):
            raise RequestError(f"{SEED}={seed!r} of arm {name!r} must be a whole number")
        seeded = {SEED: seed} if SEED in overrides else {}
        cells.append(Cell(name, seed, {**changes, **seeded}, f"{slug(name)}/seed{seed}"))
    for folder, count in collections.Counter(cell.folder for cell in cells).items():
        if count > 1:
            raise RequestError(f"cell {folder} is {count} times in the plan; remove the copies")
    return cells


def _short_paths(paths: set[str]) -> dict[str, str]:
    """Each path's shortest ending that no other path shares."""

    def endings(path: str) -> list[str]:
        parts = path.split(".")
        return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]

    counts = collections.Counter(ending for path in paths for ending in endings(path))
    return {path: next((e for e in endings(path) if counts[e] == 1), path) for path in paths}


def _describe(changes: Mapping[str, Any], short: Mapping[str, str]) -> str:
    return ",".join(f"{short[path]}={value}" for path, value in changes.items()) or "base"


def slug(name: str) -> str:
    """A folder's name for an arm: letters, digits and `._,=+-`; shortened or altered names get a hash, to stay unique.

    >>> slug("num_layers=4")
    'num_layers=4'
    """
    safe = re.sub(r"[^A-Za-z0-9._,=+-]+", "_", name).strip(".") or "arm"
    if safe == name and len(safe) <= LONGEST_NAME:
        return safe
    return f"{safe[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def write_plan(sweep: Path, cells: Sequence[Cell], metric: str, experiment: str) -> dict[str, Any]:
    """Writes `sweep.json`: arms in the plan's order (the first is the baseline), cells, primary metric.

    A plan that keeps every cell of the one that is there may add cells.

    Raises:
      RequestError: if the folder holds a plan of which a cell changed or is gone.
    """
    content = {
        "experiment": experiment,
        "metric": metric,
        "baseline": cells[0].arm,
        "arms": list(dict.fromkeys(cell.arm for cell in cells)),
        "cells": [dataclasses.asdict(cell) for cell in cells],
    }
    content = json.loads(json.dumps(content, default=str))
    if (sweep / PLAN_FILE).exists():
        before = read_plan(sweep)
        now = {cell["folder"]: cell for cell in content["cells"]}
        for cell in before["cells"]:
            if now.get(cell["folder"]) != cell:
                raise RequestError(
                    f"{sweep} holds another plan: cell {cell['folder']} of it changed or is gone; use a new --workdir"
                )
        if (before["baseline"], before["metric"]) != (content["baseline"], metric):
            raise RequestError(
                f"{sweep} compares {before['metric']} with arm {before['baseline']!r}, not {metric} with "
                f"{content['baseline']!r}; `ablax report --metric` compares by another, or use a new --workdir"
            )
    write_json(sweep / PLAN_FILE, content)
    return content


def read_plan(sweep: Path) -> dict[str, Any]:
    """What `write_plan` wrote.

    Raises:
      RequestError: if the folder holds no sweep, or its plan cannot be read.
    """
    file = sweep / PLAN_FILE
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(
            f"{sweep} holds no sweep ({PLAN_FILE} is missing); run ablax sweep first"
        ) from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{file} cannot be read ({error}); give a sweep's --workdir") from None
    if not isinstance(plan, dict) or not {"arms", "cells", "metric", "baseline"} <= plan.keys():
        raise RequestError(f"{file} is no plan of a sweep; give a sweep's --workdir")
    return plan


def record_path(sweep: Path, folder: str) -> Path:
    """Where a cell's record lies, beside its run folder."""
    return sweep / f"{folder}.json"


def read_record(sweep: Path, folder: str) -> dict[str, Any]:
    """A cell's record: `status` (`missing`, `running`, `finished`, `failed`) and, when finished, its results."""
    try:
        return json.loads(record_path(sweep, folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"status": "missing"}
