"""Running a plan in one folder: validated as a whole, finished cells skipped, interrupted ones resumed."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablax import config as configuration
from ablax import trainer
from ablax.config import RequestError
from ablax.data.corpus import open_corpus
from ablax.difference import differing
from ablax.experiment import resolve
from ablax.run import Preempted, RunFolder, code_state, versions
from ablax.sweeps.cells import (
    Cell,
    hash_of,
    is_finished,
    log_path,
    read_plan,
    read_record,
    write_plan,
)
from ablax.sweeps.controller import Controller, State
from ablax.sweeps.early import Early, rule_of
from ablax.sweeps.halved import decide, halving_of
from ablax.sweeps.inline import Inline
from ablax.sweeps.keys import BRANCH, TRIAL, WINNER
from ablax.sweeps.launchers import DONE, FAILED, RETRIES, Job, Launcher
from ablax.sweeps.plan import plan_of
from ablax.sweeps.resolution import Resolved, check_portable, resolve_plan
from ablax.sweeps.snapshot import package, snapshot
from ablax.sweeps.trials import held_cells, reopen
from ablax.sweeps.worker import experiment_of, refuse, run_cell
from ablax.training.groups import groups
from ablax.training.phases import Phases
from ablax.training.signals import signals

MORE_GRACE = 30.0
"""Seconds that the controller has beyond its cells to end."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a sweep went: cells by `folder`, each `finished`, `failed`, `skipped` (finished before) or
    `unneeded` (by the plan's looks or halving, or a trial after its arm's winner has begun)."""

    workdir: Path
    statuses: Mapping[str, str]

    @property
    def failed(self) -> list[str]:
        """Folders of the cells that failed."""
        return [folder for folder, status in self.statuses.items() if status == "failed"]


def launch(
    config: Any,
    plan: Any,
    workdir: Path | str,
    *,
    launcher: Launcher | None = None,
    metric: str | None = None,
    name: str = "",
    extend: Iterable[Any] = (),
    extensions: Sequence[str] = (),
    platform: str | None = None,
    offline: bool = False,
    progress: bool = True,
    retries: int = RETRIES,
    together: int = 1,
    say: Callable[[str], None] = lambda line: None,
    show: Callable[[Mapping[str, State]], None] = lambda states: None,
) -> Outcome:
    """Trains every cell of a plan. Calling it again goes on where it stopped.

    All cells are validated before the first one starts and before anything is written. A cell that fails is recorded
    and the others go on.

    Args:
      config: the experiment's ConfigDict, which the plan's cells override.
      plan: what `get_sweep()` returned: a `Plan` or a list of overrides.
      workdir: the sweep's folder.
      launcher: where cells run; in this process when None.
      metric: what arms are compared by, in place of the plan's.
      name: how the experiment was called, for the record.
      extend: config classes that the configuration may name.
      extensions: the `module[:Name]` of those, for other processes.
      platform: of the cells' devices, `cpu`, `cuda` or `tpu`; None for the accelerator, if there is one.
      offline: forbids the network.
      progress: whether runs in this process show their progress bars.
      retries: how many times more a cell is tried that fails for a reason that may pass.
      together: how many cells at most train as one program, of those that may (`ablax.training.groups`); 1 = none.
      say: called with a line of talk at each cell.
      show: called with the cells' states a few times a second.

    Raises:
      RequestError: if the plan, a cell of it or the metric is refused, or the folder holds another plan or experiment.
      Preempted, KeyboardInterrupt: when the sweep was stopped; cells that ran have saved.
    """
    workdir, extend = Path(workdir).expanduser().resolve(), tuple(extend)
    plan = plan_of(plan)
    if metric is not None:
        plan = dataclasses.replace(plan, metric=metric)
    resolved = resolve_plan(config, plan, extend, offline)
    for cell in resolved.cells:
        folder = RunFolder(workdir / cell.folder)
        if folder.exists() and WINNER not in cell.links:  # its knobs are its trials' to say
            _check_started(folder, cell, resolved.experiments[cell.folder], extend)
    values = configuration.to_dict(resolve(config, extend=extend))
    if launcher is not None:
        check_portable(values, resolved, extend)
    content = write_plan(
        workdir,
        resolved.cells,
        resolved.analysis,
        name,
        config=values,
        offline=offline,
        solved=resolved.solved,
    )
    code = snapshot(workdir, extend) if launcher is not None else package().parent
    _flag(workdir, resolved, say)

    flags = [f"--extend={extension}" for extension in extensions]
    flags += [f"--platform={platform}"] if platform else []
    mates = _mates(resolved, together, say)
    jobs = _jobs(workdir, resolved, code, flags, mates)
    runs = launcher or Inline(_worker(workdir, resolved, extend, offline, progress))
    grace = max(one.checkpoint.grace_seconds for one in resolved.experiments.values())
    phases = Phases()
    with signals(phases, grace + MORE_GRACE) as stop:
        if runs.prepares and not all(is_finished(workdir, job.folder) for job in jobs):
            _prepare(resolved, offline)
        phases.enter("step", 0)
        reopen(workdir, content)
        held = _held(workdir, content, say)
        controller = Controller(workdir, jobs, runs, retries, say, show, held)
        with stop.breakable(False):
            try:
                reason = controller.run(stop)
            finally:
                runs.close()
        if reason is not None:
            if "Ctrl-C" in reason:
                raise KeyboardInterrupt
            raise Preempted(f"{reason}: the cells have saved; run the same command to go on")
    return Outcome(
        workdir, {folder: controller.states[folder].status for folder in resolved.experiments}
    )


def _held(
    sweep: Path, plan: Mapping[str, Any], say: Callable[[str], None]
) -> Callable[[], set[str]]:
    """What tells which cells are not wanted, as things stand."""
    if rule := rule_of(plan):
        return Early(sweep, plan, rule, say).held
    if halving := halving_of(plan):

        def held() -> set[str]:
            decide(sweep, plan, halving, say)
            return held_cells(sweep, plan)

        return held
    return functools.partial(held_cells, sweep, plan)


def _mates(
    resolved: Resolved, together: int, say: Callable[[str], None]
) -> dict[str, tuple[str, ...]]:
    """Cell -> the others that may train in one program with it; says how many programs there are, and why."""
    if together < 2:
        return {}
    # What a winner among trials is, is not known yet; branches start from states of their own; who pauses is alone.
    alone = {WINNER, BRANCH, *([TRIAL] if halving_of({"analysis": resolved.analysis}) else [])}
    folders = [cell.folder for cell in resolved.cells if not cell.links.keys() & alone]
    found = groups([resolved.experiments[folder] for folder in folders], together)
    for group in found:
        names = [folders[index] for index in group.members]
        apart = f" ({group.why})" if group.why else ""
        say(f"{', '.join(names)}: {'as one program' if group.joint else 'alone'}{apart}")
    sets = [[folders[index] for index in group.members] for group in found]
    return {one: tuple(o for o in own if o != one) for own in sets for one in own}


def _jobs(
    sweep: Path,
    resolved: Resolved,
    code: Path,
    flags: Sequence[str],
    mates: Mapping[str, tuple[str, ...]],
) -> list[Job]:
    """The plan's cells as a launcher sees them: every arm's first seed comes before any second one."""
    seeds: dict[tuple[str, int], int] = collections.Counter()
    ranks = {}
    for cell in resolved.cells:
        ranks[cell.folder] = cell.repeat, seeds[cell.arm, cell.repeat]
        seeds[cell.arm, cell.repeat] += 1
    return [
        Job(
            folder=cell.folder,
            sweep=sweep,
            command=("cell", f"--workdir={sweep}", f"--cell={cell.folder}", *flags),
            code=code,
            log=log_path(sweep, cell.folder),
            program=_program(resolved.experiments[cell.folder]),
            mates=mates.get(cell.folder, ()),
        )
        for cell in sorted(resolved.cells, key=lambda cell: ranks[cell.folder])
    ]


def _worker(
    sweep: Path, resolved: Resolved, extend: tuple[Any, ...], offline: bool, progress: bool
) -> Callable[[str], int]:
    """What runs a cell in this process, by its folder; its exit code."""
    cells = {cell.folder: cell for cell in resolved.cells}

    def work(folder: str) -> int:
        experiment = resolved.experiments[folder]
        if WINNER in cells[folder].links:
            try:
                experiment = experiment_of(sweep, read_plan(sweep), cells[folder], extend)
            except RequestError as error:
                refuse(sweep, cells[folder], error)
                return FAILED
        record = run_cell(
            sweep,
            cells[folder],
            experiment,
            analysis=hash_of(resolved.analysis),
            extend=extend,
            offline=offline,
            progress=progress,
        )
        return FAILED if record["status"] == "failed" else DONE

    return work


def _program(experiment: Any) -> str:
    """Equal for cells of one compiled program: all but seed, name and what enters it as an argument."""
    static = dataclasses.replace(configuration.static(experiment), seed=0, name="")
    return configuration.digest(repr(static))


def _prepare(resolved: Resolved, offline: bool) -> None:
    """Makes the data ready, so that cells do not wait for each other."""
    seen = set()
    for experiment in resolved.experiments.values():
        specials = trainer.specials_of(experiment)
        key = repr((experiment.data, specials))
        if key not in seen:
            seen.add(key)
            open_corpus(experiment.data, specials, offline=offline)


def _flag(sweep: Path, resolved: Resolved, say: Callable[[str], None]) -> None:
    """Says which finished cells ran with other code or libraries than the others will."""
    now = {"code": code_state(package())["sha256"][:16], **versions()}
    found: dict[str, list[str]] = {}
    for cell in resolved.cells:
        if identity := read_record(sweep, cell.folder).get("identity"):
            then = {"code": identity["code"][:16], **identity["versions"]}
            for what, (old, new) in differing(then, now).items():
                found.setdefault(f"{what} {old}, and this is {new}", []).append(cell.folder)
    for how, cells in found.items():
        say(f"{len(cells)} finished cells ran with {how}: {', '.join(cells)}")


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
