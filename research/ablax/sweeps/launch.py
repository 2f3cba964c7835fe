"""Running a plan's cells one after another in one folder: finished ones skipped, interrupted ones resumed."""

import dataclasses
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablax import trainer
from ablax.config import RequestError, suggest
from ablax.experiment import resolve
from ablax.run import Preempted, RunFolder, write_json
from ablax.sweeps.cells import Cell, cells_of, read_record, record_path, write_plan
from ablax.training.evaluators import metrics_of
from ablax.training.phases import Phases
from ablax.training.signals import signals

METRIC = "bits_per_byte"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a sweep went: cells by `folder`, each `finished`, `failed` or `skipped` (finished before)."""

    workdir: Path
    statuses: Mapping[str, str]

    @property
    def failed(self) -> list[str]:
        """Folders of the cells that failed."""
        return [folder for folder, status in self.statuses.items() if status == "failed"]


def resolve_cells(config: Any, cells: Sequence[Cell], extend: Iterable[Any] = ()) -> dict[str, Any]:
    """Resolves and validates every cell.

    Returns:
      Folder -> configuration.

    Raises:
      RequestError: with the arm's name, for the first cell whose configuration is refused.
    """
    resolved = {}
    for cell in cells:
        try:
            resolved[cell.folder] = resolve(config, cell.overrides, extend=extend)
        except RequestError as error:
            raise RequestError(f"arm {cell.arm!r}: {error}") from None
    return resolved


def launch(
    config: Any,
    plan: Sequence[Mapping[str, Any]],
    workdir: Path | str,
    *,
    metric: str = METRIC,
    name: str = "",
    extend: Iterable[Any] = (),
    offline: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Trains every cell of a plan. Calling it again goes on where it stopped.

    All cells are validated before the first one starts and before anything is written. A cell that fails is recorded
    and the others go on.

    Args:
      config: the experiment's ConfigDict, which the plan's cells override.
      plan: what `get_sweep()` returned; the first cell's arm is the baseline.
      workdir: the sweep's folder.
      metric: what the report compares.
      name: how the experiment was called, for the record.
      extend: config classes that the configuration may name.
      offline: forbids the network.
      progress: whether each run shows its progress bar.
      say: called with a line of talk at each cell.

    Raises:
      RequestError: if the plan, a cell of it or the metric is refused, or the folder holds another plan or experiment.
      Preempted, KeyboardInterrupt: from the cell that was running, which is saved, or between two cells.
    """
    workdir, extend = Path(workdir), tuple(extend)
    cells = cells_of(plan)
    resolved = resolve_cells(config, cells, extend)
    known = sorted({name for experiment in resolved.values() for name in metrics_of(experiment)})
    if metric not in known:
        raise RequestError(f"--metric={metric}: no arm reports it{suggest(metric, known)}")
    for cell in cells:
        folder = RunFolder(workdir / cell.folder)
        if folder.exists():
            _check_started(folder, cell, resolved[cell.folder], extend)
    write_plan(workdir, cells, metric, name)
    statuses = {}
    with signals(Phases(), resolved[cells[0].folder].checkpoint.grace_seconds):
        for index, cell in enumerate(cells, start=1):
            if read_record(workdir, cell.folder)["status"] == "finished":
                statuses[cell.folder] = "skipped"
                say(f"[{index}/{len(cells)}] {cell.folder}: already finished")
                continue
            say(f"[{index}/{len(cells)}] {cell.folder}")
            statuses[cell.folder] = _run_cell(
                workdir, cell, resolved[cell.folder], extend, offline, progress, say
            )
    return Outcome(workdir, statuses)


def _check_started(folder: RunFolder, cell: Cell, resolved: Any, extend: tuple[Any, ...]) -> None:
    """Refuses a cell that was run with another experiment than the plan's cells override now."""
    try:
        trainer.check_same(folder, resolved, extend)
    except RequestError as error:
        raise RequestError(f"arm {cell.arm!r}: {error}") from None
    done = folder.status().get("status") == "finished"
    if done and trainer.finished(folder, resolved) is None:
        raise RequestError(
            f"arm {cell.arm!r}: {folder.path} finished with other training.steps; use a new --workdir"
        )


def _run_cell(
    workdir: Path,
    cell: Cell,
    resolved: Any,
    extend: tuple[Any, ...],
    offline: bool,
    progress: bool,
    say: Callable[[str], None],
) -> str:
    record = record_path(workdir, cell.folder)
    write_json(record, {"status": "running", "started": time.time()})
    try:
        run = trainer.train(
            resolved, workdir / cell.folder, extend=extend, offline=offline, progress=progress
        )
    except Preempted:
        raise
    except Exception as error:
        lines = traceback.format_exception(error)
        write_json(
            record, {"status": "failed", "error": str(error) or repr(error), "traceback": lines}
        )
        say(f"{cell.folder} failed: {error}")
        return "failed"
    if not run.finished:
        raise KeyboardInterrupt
    content = {
        "status": "finished",
        "step": run.step,
        "metrics": run.metrics,
        "seconds": run.seconds,
        "tokens_per_second": run.tokens_per_second,
        "parameters": run.parameters,
    }
    write_json(record, content)
    return "finished"
