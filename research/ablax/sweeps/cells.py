"""Cells of a sweep: an arm with a seed, its folder, and how it went.

A sweep's folder holds `sweep.json` (the plan), and for each cell `ARM/seedK` (a run folder), `ARM/seedK.json` (its
record), `ARM/seedK.log` (what it said) and, while somebody runs it, `ARM/seedK.lease`. What others
read is written to a temporary name and renamed, so a reader never sees half of a file.
"""

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablax.config import RequestError, digest
from ablax.run import write_json
from ablax.sweeps.branch import tied
from ablax.sweeps.keys import BESIDE, LINKS
from ablax.sweeps.looks import declared
from ablax.sweeps.plan import ARM, REPEAT, SEED, Plan
from ablax.sweeps.statistics import CONFIDENCE

PLAN_FILE = "sweep.json"
LONGEST_NAME = 80
LAST_LINES = 5
APART = ("seed", "name")
"""Knobs in which cells of one arm may differ."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """An arm with a seed.

    Attributes:
      overrides: all that the plan sets, the seed included, the arm's name not.
      folder: its run folder, relative to the sweep's.
      repeat: which run of this arm and seed it is; 0 is the one that is compared.
      links: what ties it to other cells of the plan (see `keys.LINKS`).
    """

    arm: str
    seed: int
    overrides: Mapping[str, Any]
    folder: str
    repeat: int = 0
    links: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def cells_of(plan: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """The cells of a plan, in its order, with names and folders.

    Arms without a name are called after their overrides, with as much of each path as tells the paths apart.

    Raises:
      RequestError: if the plan is malformed, names two arms alike, or has a cell twice.
    """
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
        changes = {
            path: value
            for path, value in overrides.items()
            if path not in (ARM, SEED, REPEAT, *LINKS)
        }
        name = str(overrides.get(ARM) or _describe(changes, short))
        if arms.setdefault(name, changes) != changes:
            raise RequestError(f"two different arms are named {name!r}; give each its own name")
        seed, repeat = overrides.get(SEED, 0), overrides.get(REPEAT, 0)
        for key, value in ((SEED, seed), (REPEAT, repeat)):
            if not isinstance(value, int) or value < 0:
                raise RequestError(f"{key}={value!r} of arm {name!r} must be a whole number >= 0")
        seeded = {SEED: seed} if SEED in overrides else {}
        folder = f"{slug(name)}/seed{seed}" + (f".repeat{repeat}" if repeat else "")
        links = {key: overrides[key] for key in LINKS if key in overrides}
        cells.append(Cell(name, seed, {**changes, **seeded}, folder, repeat, links))
    for folder, count in collections.Counter(cell.folder for cell in cells).items():
        if count > 1:
            raise RequestError(f"cell {folder} is {count} times in the plan; remove the copies")
    return tied(cells)


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


def arms_of(cells: Sequence[Cell]) -> list[str]:
    """The arms that are compared, in the plan's order: a trial or a trunk is none."""
    return list(dict.fromkeys(cell.arm for cell in cells if not cell.links.keys() & BESIDE))


def analysis_of(plan: Plan, cells: Sequence[Cell]) -> dict[str, Any]:
    """How the arms will be compared: what a plan settles before its first cell runs, as JSON has it.

    Raises:
      RequestError: if no arm has the baseline's name.
    """
    arms = arms_of(cells)
    if plan.baseline not in (None, *arms):
        raise RequestError(
            f"baseline={plan.baseline!r} names no arm of the plan; there are: {', '.join(arms)}"
        )
    if plan.looks is not None and any(cell.links for cell in cells):
        raise RequestError(
            "looks are at arms with the same seeds, and a plan by `tuned` or `branch` has other cells too; leave out "
            "one of both"
        )
    found: dict[str, Any] = {
        "metric": plan.metric,
        "baseline": plan.baseline or arms[0],
        "test": "paired t over seeds",
        "confidence": CONFIDENCE,
        "adjusted": "Holm, over all arms",
        "looks": None if plan.looks is None else declared(plan.looks),
    }
    if plan.halving is not None:
        found["halving"] = dataclasses.asdict(plan.halving)
    return json.loads(json.dumps(found))


def hash_of(analysis: Mapping[str, Any]) -> str:
    """What every run says of the analysis that it was made for."""
    return digest(json.dumps(analysis, sort_keys=True))


def write_plan(
    sweep: Path, cells: Sequence[Cell], analysis: Mapping[str, Any], experiment: str, **more: Any
) -> dict[str, Any]:
    """Writes `sweep.json`: arms in the plan's order, cells, analysis with its hash.

    A plan that keeps every cell of the one that is there may add cells. Arms that come when others have finished are
    `late`: arm -> how many cells had.

    Args:
      experiment: how the experiment was called.
      more: what else the workers need, as JSON can hold it.

    Raises:
      RequestError: if the folder holds a plan of which a cell changed or is gone, or another analysis.
    """
    content = {
        "experiment": experiment,
        "metric": analysis["metric"],
        "baseline": analysis["baseline"],
        "analysis": dict(analysis),
        "analysis_sha": hash_of(analysis),
        "arms": arms_of(cells),
        "late": {},
        "cells": [dataclasses.asdict(cell) for cell in cells],
        **more,
    }
    content = json.loads(json.dumps(content, default=str))
    if (sweep / PLAN_FILE).exists():
        before = read_plan(sweep)
        _check_kept(sweep, before, content)
        ended = sum(is_finished(sweep, cell["folder"]) for cell in before["cells"])
        new = [arm for arm in content["arms"] if arm not in before["arms"]]
        content["late"] = {**before.get("late", {}), **(dict.fromkeys(new, ended) if ended else {})}
    write_json(sweep / PLAN_FILE, content)
    return content


def _check_kept(sweep: Path, before: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    now = {cell["folder"]: cell for cell in content["cells"]}
    for cell in before["cells"]:
        if now.get(cell["folder"]) != cell:
            raise RequestError(
                f"{sweep} holds another plan: cell {cell['folder']} of it changed or is gone; use a new --workdir"
            )
    old, new = before["analysis"], content["analysis"]
    for name in old | new:
        if old.get(name) != new.get(name):
            raise RequestError(
                f"{sweep} has {name}={old.get(name)!r} in its plan, not {new.get(name)!r}, and cells ran for it; "
                "`ablax report` takes another metric as exploratory, or use a new --workdir"
            )


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


def compared(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan that was read, with the cells that a report compares: without trials and trunks."""
    cells = [cell for cell in plan["cells"] if not cell.get("links", {}).keys() & BESIDE]
    return {**plan, "cells": cells}


def record_path(sweep: Path, folder: str) -> Path:
    """Where a cell's record lies, beside its run folder."""
    return sweep / f"{folder}.json"


def read_record(sweep: Path, folder: str) -> dict[str, Any]:
    """A cell's record: `status` (`missing`, `running`, `finished`, `failed`) and, when finished, its results."""
    try:
        return json.loads(record_path(sweep, folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"status": "missing"}


def is_finished(sweep: Path, folder: str) -> bool:
    """Whether a cell has its result."""
    return read_record(sweep, folder)["status"] == "finished"


def lease_path(sweep: Path, folder: str) -> Path:
    """Who runs a cell says so here (`ablax.lease`)."""
    return sweep / f"{folder}.lease"


def log_path(sweep: Path, folder: str) -> Path:
    """What a cell's process printed."""
    return sweep / f"{folder}.log"


def last_lines(sweep: Path, folder: str) -> list[str]:
    """The end of a cell's log, without empty lines; none where there is no log."""
    log = log_path(sweep, folder)
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.rstrip() for line in lines if line.strip()][-LAST_LINES:]
