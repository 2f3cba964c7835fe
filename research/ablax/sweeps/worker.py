"""One cell of a sweep, run by whoever gets its lease: trained, or gone on with, and recorded."""

import contextlib
import dataclasses
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax import monitoring

from ablax import config as configuration
from ablax import trainer
from ablax.config import RequestError, suggest
from ablax.experiment import resolve
from ablax.lease import Lease
from ablax.members import train_members
from ablax.run import Paused, Preempted, RunFailed, RunFolder, code_state, versions, write_json
from ablax.sweeps.branches import own_part, start
from ablax.sweeps.cells import Cell, lease_path, read_plan, read_record, record_path
from ablax.sweeps.halved import is_held_back, next_rung, pause
from ablax.sweeps.keys import BRANCH, WINNER
from ablax.sweeps.snapshot import package
from ablax.sweeps.trials import trials_in
from ablax.sweeps.tuned import winner

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


def experiment_of(
    sweep: Path, plan: Mapping[str, Any], cell: Cell, extend: Iterable[Any] = ()
) -> Any:
    """The configuration of a cell, from the sweep's folder alone: the experiment's file may have changed.

    Raises:
      RequestError: if it is that of the winner among trials, and none has won.
    """
    chosen = {}
    if wish := cell.links.get(WINNER):
        chosen = winner(trials_in(sweep, plan)[wish["of"]], plan["metric"]).draw
    return resolve(plan["config"], {**cell.overrides, **chosen}, extend=extend)


def refuse(sweep: Path, cell: Cell, error: RequestError) -> dict[str, Any]:
    """Records why a cell cannot be run.

    Raises:
      Taken: if another process holds the cell's lease.
    """
    lease = Lease.claim(lease_path(sweep, cell.folder))
    if lease is None:
        raise Taken(f"another process runs {cell.folder}")
    with lease:
        if (started := begin(sweep, cell))["status"] == "finished":
            return started
        return end(sweep, cell, None, started, error, {})


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
      The record, `finished`, `failed`, or `paused` at a rung of the plan's halving.

    Raises:
      Taken: if another process holds the cell's lease.
      Preempted, KeyboardInterrupt: if the run was stopped, and saved.
    """
    lease = Lease.claim(lease_path(sweep, cell.folder))
    if lease is None:
        raise Taken(f"another process runs {cell.folder}")
    with lease:
        if is_held_back(sweep, cell):
            return read_record(sweep, cell.folder)
        started, rung = begin(sweep, cell), next_rung(sweep, cell)
        if started["status"] == "finished":
            return started
        with counted() as programs:
            try:
                if BRANCH in cell.links:
                    start(sweep, cell, experiment, extend)
                run = trainer.train(
                    experiment,
                    sweep / cell.folder,
                    extend=extend,
                    offline=offline,
                    progress=progress,
                    say=say,
                    sweep=origin(cell, analysis),
                    until=rung,
                )
            except Paused:
                return pause(sweep, cell, experiment.evaluation.split, started)
            except Preempted:
                raise
            except Exception as error:
                run = error
        return end(sweep, cell, experiment, started, run, programs)


def begin(sweep: Path, cell: Cell) -> dict[str, Any]:
    """Records that a cell is being run, by who holds its lease; the record, or that of a cell that is finished."""
    before = read_record(sweep, cell.folder)
    if before["status"] == "finished":
        return before
    started = {
        "status": "running",
        "started": time.time(),
        "attempts": before.get("attempts", 0) + 1,
        "host": platform.node(),
        **({"rungs": before["rungs"]} if "rungs" in before else {}),
    }
    write_json(record_path(sweep, cell.folder), started)
    return started


def origin(cell: Cell, analysis: str) -> dict[str, Any]:
    """What run.json says of the sweep."""
    return {"cell": dataclasses.asdict(cell), "analysis_sha": analysis}


def end(
    sweep: Path,
    cell: Cell,
    experiment: Any,
    started: Mapping[str, Any],
    run: "trainer.Run | Exception",
    programs: Mapping[str, int],
) -> dict[str, Any]:
    """Records how a cell ended.

    Raises:
      KeyboardInterrupt: if Ctrl-C ended the run, which saved.
    """
    if isinstance(run, Exception):
        found = {
            "status": "failed",
            "error": str(run) or repr(run),
            "traceback": traceback.format_exception(run),
            # What the run can tell of itself in one line will be the same the next time.
            "again": not isinstance(run, RequestError | RunFailed),
        }
    elif not run.finished:
        raise KeyboardInterrupt
    else:
        found = {
            "status": "finished",
            "step": run.step,
            "metrics": run.metrics,
            **own_part(run),
            "parameters": run.parameters,
            "programs": dict(programs),
            "identity": identity_of(experiment, RunFolder(run.workdir).status()),
        }
    record = {**started, **found}
    write_json(record_path(sweep, cell.folder), record)
    return record


@contextlib.contextmanager
def counted() -> Iterator[dict[str, int]]:
    """How many programs are compiled inside (`compiled`), and how many are found compiled (`reused`)."""
    counts = {"reused": 0, "compiled": 0}
    names = {HITS: "reused", MISSES: "compiled"}

    def count(event: str, **_: Any) -> None:
        if event in names:
            counts[names[event]] += 1

    monitoring.register_event_listener(count)
    try:
        yield counts
    finally:
        monitoring.unregister_event_listener(count)


def identity_of(experiment: Any, status: Mapping[str, Any]) -> dict[str, Any]:
    """What a cell's result depends on: `config`, `code`, `data`, `versions`, of a branch its `parent`; and `sha256`
    of them.

    Args:
      status: what its run.json says.
    """
    parent = status.get("parent")
    found = {
        "config": configuration.fingerprint(experiment),
        "code": code_state(package())["sha256"],
        "data": status.get("data"),
        "versions": versions(),
        **({"parent": [parent["fingerprint"], parent["step"]]} if parent else {}),
    }
    found = json.loads(json.dumps(found))
    return {**found, "sha256": configuration.digest(json.dumps(found, sort_keys=True))}


def run_named(
    sweep: Path,
    folder: str,
    mates: Sequence[str] = (),
    *,
    extend: Iterable[Any] = (),
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Runs a cell by its name: what a launcher's process does. See `run_cell`.

    Args:
      mates: other cells that may train in one program with it.
    """
    plan = read_plan(sweep)
    cells = [cell_named(plan, name) for name in (folder, *mates)]
    experiments = [experiment_of(sweep, plan, cell, extend) for cell in cells]
    more = {"analysis": plan["analysis_sha"], "extend": extend, "offline": plan["offline"]}
    if mates:
        return run_together(sweep, cells, experiments, say=say, **more)
    return run_cell(sweep, cells[0], experiments[0], say=say, **more)


def run_together(
    sweep: Path,
    cells: Sequence[Cell],
    experiments: Sequence[Any],
    *,
    analysis: str,
    extend: Iterable[Any],
    offline: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Trains cells as one program: the first, and those of the others that nobody runs and that are not finished.

    Returns:
      The first one's record; each has its own.

    Raises:
      Taken, Preempted, KeyboardInterrupt: see `run_cell`.
    """
    with contextlib.ExitStack() as stack:
        ours = []
        for cell, experiment in zip(cells, experiments, strict=True):
            if lease := Lease.claim(lease_path(sweep, cell.folder)):
                stack.enter_context(lease)
                if (started := begin(sweep, cell))["status"] != "finished":
                    ours.append((cell, experiment, started))
            elif cell is cells[0]:
                raise Taken(f"another process runs {cell.folder}")
        with counted() as programs:
            ends = (
                train_members(
                    [(experiment, sweep / cell.folder) for cell, experiment, _ in ours],
                    extend=extend,
                    offline=offline,
                    sweeps=[origin(cell, analysis) for cell, _, _ in ours],
                    say=say,
                )
                if ours
                else []
            )
        for (cell, experiment, started), run in zip(ours, ends, strict=True):
            end(sweep, cell, experiment, started, run, programs)
            programs = {}  # counted once, for the first
    return read_record(sweep, cells[0].folder)
