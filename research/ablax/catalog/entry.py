"""What one folder, of a run or of a sweep, says about itself. Only files are read, and no experiment is imported."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablax.catalog.notes import NOTES, read_notes
from ablax.history import flat
from ablax.run import RunFolder
from ablax.sweeps.keys import BRANCH
from ablax.training.thinned import evaluated_branch

RUN, SWEEP = "run", "sweep"
PLAN_FILE = "sweep.json"
WATCHED = ("run.json", "config.json", "metrics.jsonl", NOTES, "checkpoints", "evals", PLAN_FILE)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A folder's content.

    Attributes:
      row: what a list shows.
      knobs: dotted path -> value.
      numbers: (split, step, metric, value) of every evaluation; of a sweep, means of its arms.
      hashes: (what, hash).
    """

    row: dict[str, Any]
    knobs: dict[str, Any]
    numbers: list[tuple[str, int, str, float]]
    hashes: list[tuple[str, str]]


def folders_in(root: Path) -> Iterator[tuple[Path, str]]:
    """Every run and sweep at or under a root, with its kind; hidden names and the insides of runs are left out."""
    seen: set[tuple[int, int]] = set()
    pending = [root]
    while pending:
        folder = pending.pop()
        with contextlib.suppress(OSError):  # what may not be looked into, or is gone by now
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:  # a link that leads back
                continue
            seen.add((status.st_dev, status.st_ino))
            if (folder / "config.json").is_file():
                yield folder, RUN
                continue
            sweep = (folder / PLAN_FILE).is_file()
            if sweep:
                yield folder, SWEEP
            inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
            if sweep:  # the code that its cells ran
                inside = [path for path in inside if path.name != "code"]
            pending += sorted((path for path in inside if path.is_dir()), reverse=True)


def stamp_of(folder: Path, kind: str) -> str:
    """Changes whenever a folder's content does: inodes, times and sizes of what is read of it."""
    names = list(WATCHED)
    if kind == SWEEP:  # its cells' records
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            plan = json.loads((folder / PLAN_FILE).read_text())
            names += [f"{cell['folder']}.json" for cell in plan["cells"]]
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            status = os.stat(folder / name)
            found.append((name, status.st_ino, status.st_mtime_ns, status.st_size))
    return hashlib.sha256(repr(found).encode()).hexdigest()


def read_entry(folder: Path, kind: str) -> Entry:
    """What a folder says now.

    Raises:
      RequestError, OSError, ValueError: if a file of it cannot be read.
    """
    return _run(RunFolder(folder)) if kind == RUN else _sweep(folder)


def _run(folder: RunFolder) -> Entry:
    status, knobs = folder.status(), flat(folder.config())
    records = [record for record in folder.metrics() if record.get("split") != "train"]
    starts = status.get("starts") or [{}]
    notes = read_notes(folder.path)
    steps = sorted(int(p.name) for p in folder.checkpoints.glob("*") if p.name.isdigit())
    names = ("name", "status", "step", "parameters", "seconds", "parent", "fingerprint", "pruned")
    row = {
        "workdir": str(folder.path),
        "kind": RUN,
        **{name: status.get(name) for name in names},
        "metrics": records[-1] if records else {},
        "seed": knobs.get("seed"),
        "init_run": knobs.get("init.run") or None,
        "data": (status.get("data") or {}).get(str((records or [{}])[-1].get("split"))),
        "started": starts[0].get("started") or status.get("forked"),
        "ended": status.get("ended"),
        "checkpoints": steps,
        **notes,
    }
    numbers = [
        (str(record["split"]), int(record.get("step", 0)), name, value)
        for record in [*records, *_evaluations(folder)]
        for name, value in record.items()
        if isinstance(value, float)
    ]
    code = starts[-1].get("code", {})
    hashes = [("fingerprint", status.get("fingerprint"))]
    hashes += [("code", code.get("sha256")), ("commit", code.get("commit"))]
    hashes += [(f"data {name}", value) for name, value in (status.get("data") or {}).items()]
    for step in steps:
        hashes += _of_checkpoint(folder.checkpoints / str(step), step)
    known = [(what, value) for what, value in hashes if value]
    return Entry(row, knobs, list(dict.fromkeys(numbers)), known)


def _evaluations(folder: RunFolder) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.evals.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_text())
            totals = found.get("totals", found) if isinstance(found, dict) else {}
            yield {**totals, "split": path.stem, "step": totals.get("step") or 0}


def _of_checkpoint(folder: Path, step: int) -> Iterator[tuple[str, str]]:
    """Hashes of a checkpoint and of the parameters in it that are evaluated: thinning changes the first one only."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        manifest = json.loads((folder / "manifest" / "metadata").read_text())
        yield f"checkpoint {step}", manifest["seal"]
        leaves = manifest["leaves"]
        prefix = evaluated_branch(leaves)
        own = {n.removeprefix(prefix): leaves[n] for n in leaves if n.startswith(prefix)}
        text = json.dumps(own, sort_keys=True)
        yield f"parameters {step}", hashlib.sha256(text.encode()).hexdigest()


def _sweep(folder: Path) -> Entry:
    plan = json.loads((folder / PLAN_FILE).read_text())
    records: dict[str, dict[str, Any]] = {}
    for cell in plan["cells"]:
        with contextlib.suppress(OSError, ValueError):
            records[cell["folder"]] = json.loads((folder / f"{cell['folder']}.json").read_text())
    done = {name: r for name, r in records.items() if r.get("status") == "finished"}
    failed = sum(record.get("status") == "failed" for record in records.values())
    complete = len(done) == len(plan["cells"])
    row = {
        "workdir": str(folder),
        "kind": SWEEP,
        "name": plan.get("experiment"),
        "status": "finished" if complete else "failed" if failed else "unfinished",
        "cells": len(plan["cells"]),
        "finished": len(done),
        "failed": failed,
        "baseline": plan.get("baseline"),
        "metric": plan.get("metric"),
        "metrics": {},
        "seconds": sum(record.get("seconds") or 0.0 for record in done.values()),
        "plan": [
            {k: cell.get(k) for k in ("folder", "arm", "seed", "overrides")}
            | {"needs": [link["of"]] if (link := cell.get("links", {}).get(BRANCH)) else []}
            for cell in plan["cells"]
        ],
    }
    by_arm: dict[tuple[str, str], list[float]] = {}
    for cell in plan["cells"]:
        for name, value in done.get(cell["folder"], {}).get("metrics", {}).items():
            if isinstance(value, float):
                by_arm.setdefault((cell["arm"], name), []).append(value)
    numbers = [
        (f"mean of arm {arm}", 0, name, sum(found) / len(found))
        for (arm, name), found in by_arm.items()
    ]
    return Entry(row, {}, numbers, [])
