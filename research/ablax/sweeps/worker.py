"""One cell of a sweep, run by whoever gets its lease: trained, or gone on with, and recorded."""

import dataclasses
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jax import monitoring

from ablax import config as configuration
from ablax import trainer
from ablax.config import RequestError, suggest
from ablax.experiment import resolve
from ablax.lease import Lease
from ablax.run import Preempted, RunFailed, RunFolder, code_state, versions, write_json
from ablax.sweeps.cells import Cell, lease_path, read_plan, read_record, record_path
from ablax.sweeps.snapshot import package

HITS = "/jax/compilation_cache/cache_hits"
MISSES = "/jax/compilation_cache/cache_misses"


class Taken(Exception):
    """Another process runs the cell."""


def cell_named(plan: Mapping[str, Any], folder: str) -> Cell:
    """A cell of a plan that was read.

    Raises:
      RequestError: if there is none.
    """
    for cell in plan["cells"]:
        if cell["folder"] == folder:
            return Cell(**cell)
    names = [cell["folder"] for cell in plan["cells"]]
    raise RequestError(f"--cell={folder} is no cell of the plan{suggest(folder, names)}")


def experiment_of(plan: Mapping[str, Any], cell: Cell, extend: Iterable[Any] = ()) -> Any:
    """The configuration of a cell, from the sweep's folder alone: the experiment's file may have changed."""
    return resolve(plan["config"], cell.overrides, extend=extend)


def run_cell(
    sweep: Path,
    cell: Cell,
    experiment: Any,
    *,
    analysis: str = "",
    extend: Iterable[Any] = (),
    offline: bool = False,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Trains a cell, or goes on with it, unless it is finished; what became of it is its record.

    Args:
      analysis: hash of the plan's analysis, which the run keeps.

    Returns:
      The record, `finished` or `failed`.

    Raises:
      Taken: if another process holds the cell's lease.
      Preempted, KeyboardInterrupt: if the run was stopped, and saved.
    """
    lease = Lease.claim(lease_path(sweep, cell.folder))
    if lease is None:
        raise Taken(f"another process runs {cell.folder}")
    with lease:
        before = read_record(sweep, cell.folder)
        if before["status"] == "finished":
            return before
        attempts = before.get("attempts", 0) + 1
        started = {"started": time.time(), "attempts": attempts, "host": platform.node()}
        write_json(record_path(sweep, cell.folder), {"status": "running", **started})
        record = started | _outcome(
            sweep, cell, experiment, analysis, extend, offline, progress, say
        )
        write_json(record_path(sweep, cell.folder), record)
        return record


def _outcome(
    sweep: Path,
    cell: Cell,
    experiment: Any,
    analysis: str,
    extend: Iterable[Any],
    offline: bool,
    progress: bool,
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    counts = {HITS: 0, MISSES: 0}

    def count(event: str, **_: Any) -> None:
        if event in counts:
            counts[event] += 1

    monitoring.register_event_listener(count)
    try:
        run = trainer.train(
            experiment,
            sweep / cell.folder,
            extend=extend,
            offline=offline,
            progress=progress,
            say=say,
            sweep={"cell": dataclasses.asdict(cell), "analysis_sha": analysis},
        )
    except Preempted:
        raise
    except Exception as error:
        return {
            "status": "failed",
            "error": str(error) or repr(error),
            "traceback": traceback.format_exception(error),
            # What the run can tell of itself in one line will be the same the next time.
            "again": not isinstance(error, RequestError | RunFailed),
        }
    finally:
        monitoring.unregister_event_listener(count)
    if not run.finished:
        raise KeyboardInterrupt
    identity = identity_of(experiment, RunFolder(run.workdir).status().get("data"))
    return {
        "status": "finished",
        "step": run.step,
        "metrics": run.metrics,
        "seconds": run.seconds,
        "tokens_per_second": run.tokens_per_second,
        "parameters": run.parameters,
        "programs": {"reused": counts[HITS], "compiled": counts[MISSES]},
        "identity": identity,
    }


def identity_of(experiment: Any, data: Any) -> dict[str, Any]:
    """What a cell's result depends on: `config`, `code`, `data`, `versions`, and `sha256` of the four."""
    found = {
        "config": configuration.fingerprint(experiment),
        "code": code_state(package())["sha256"],
        "data": data,
        "versions": versions(),
    }
    found = json.loads(json.dumps(found))
    return {**found, "sha256": configuration.digest(json.dumps(found, sort_keys=True))}


def run_named(
    sweep: Path, folder: str, *, extend: Iterable[Any] = (), say: Callable[[str], None]
) -> dict[str, Any]:
    """Runs a cell by its name: what a launcher's process does. See `run_cell`."""
    plan = read_plan(sweep)
    cell = cell_named(plan, folder)
    return run_cell(
        sweep,
        cell,
        experiment_of(plan, cell, extend),
        analysis=plan["analysis_sha"],
        extend=extend,
        offline=plan["offline"],
        say=say,
    )
