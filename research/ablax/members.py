"""Training several runs as one program; each leaves what it would have left alone."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ablax import distributed
from ablax.config import RequestError
from ablax.data.corpus import Corpus
from ablax.data.shared import SharedBatches
from ablax.experiment import Experiment, resolve
from ablax.run import Preempted, RunFolder
from ablax.trainer import (
    ENDS,
    Run,
    begin,
    check_same,
    finished,
    open_run_corpus,
    run_of,
)
from ablax.training import session
from ablax.training.compilation import keep_programs
from ablax.training.descent import Descent
from ablax.training.groups import groups
from ablax.training.members import Member, Members, drive_all
from ablax.training.phases import Phases
from ablax.training.samples import check_split
from ablax.training.seat import Steps
from ablax.training.signals import Stop, signals

Say = Callable[[str], None]


def train_members(
    runs: Sequence[tuple[Any, str | Path]],
    *,
    extend: Iterable[Any] = (),
    offline: bool = False,
    sweeps: Sequence[Mapping[str, Any]] = (),
    say: Say | None = None,
) -> list[Run | Exception]:
    """Trains several runs together, or goes on with what is there of each.

    Every folder is written as `train` writes it, and either may go on with what the other began. Numbers agree with
    those of `train` but for the order of float32 additions. Clocks (`seconds`, tokens per second) are those of the
    whole: a member's run took as long as all of them.

    Args:
      runs: (configuration, run folder) of each; see `groups` for which can train together.
      extend: config classes from outside that the configurations name.
      offline: forbids the network.
      sweeps: what run.json of each says of the sweep that it belongs to; () = nothing.
      say: takes messages; stderr when None.

    Returns:
      For each, its run (not finished if Ctrl-C ended it, which saves first), or the exception that ended it alone.

    Raises:
      RequestError: for mistakes, before anything is written.
      Preempted: after SIGTERM or SIGUSR1; all were saved.
      KeyboardInterrupt: by Ctrl-C before the first step, or twice.
    """
    say = say or (lambda text: print(text, file=sys.stderr))
    extend = tuple(extend)
    experiments = [resolve(config, extend=extend) for config, _ in runs]
    folders = [RunFolder(workdir) for _, workdir in runs]
    _check_together(experiments, folders)
    keep_programs()
    phases = Phases()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals(phases, experiments[0].checkpoint.grace_seconds))
        results: list[Run | Exception | None] = []
        for experiment, folder in zip(experiments, folders, strict=True):
            resuming = folder.exists()
            if resuming:
                check_same(folder, experiment, extend)
            stack.enter_context(folder.lock())
            results.append(finished(folder, experiment) if resuming else None)
        going = [index for index, result in enumerate(results) if result is None]
        if going:
            chosen = [(experiments[i], folders[i]) for i in going]
            work = _planned(chosen, stack, offline, say)
            for index in going if sweeps else ():
                folders[index].update(sweep=dict(sweeps[index]))
            for index, end in zip(going, _train(work, phases, stop, say), strict=True):
                results[index] = end
    ends = [run_of(f) if r is None else r for f, r in zip(folders, results, strict=True)]
    if preempted := next((end for end in ends if isinstance(end, Preempted)), None):
        raise preempted
    return ends


def _check_together(experiments: Sequence[Experiment], folders: Sequence[RunFolder]) -> None:
    """Raises RequestError if these runs cannot train together."""
    if not experiments:
        raise RequestError("there is no run to train; give at least one (configuration, folder)")
    if distributed.ranks().several:
        raise RequestError("members train in one process; start one, or set ABLAX_PROCESS_COUNT=1")
    if len({folder.path for folder in folders}) < len(folders):
        raise RequestError("two members have one folder; give each its own")
    found = groups(experiments)
    if wrong := next((group for group in found if group.why), None):
        where = folders[wrong.members[0]].path
        raise RequestError(f"{where} cannot train with the others: {wrong.why}; train it alone")


def _planned(
    chosen: Sequence[tuple[Experiment, RunFolder]],
    stack: contextlib.ExitStack,
    offline: bool,
    say: Say,
) -> list[tuple[Descent, RunFolder]]:
    """The work of each member over one program and one corpus; what can be refused is, and then all is begun."""
    started = next((folder for _, folder in chosen if folder.tokenizer.is_dir()), chosen[0][1])
    corpus = open_run_corpus(chosen[0][0], started, offline, None)
    device = jax.devices()[:1]
    first = Descent.plan(chosen[0][0], corpus, device)
    check_split(corpus, first.experiment.evaluation.split)
    shared: dict[int, SharedBatches] = {}
    work = []
    for experiment, folder in chosen:
        _check_data(folder, corpus)
        if experiment.seed not in shared:
            loader = session.training_loader(experiment, corpus)
            shared[experiment.seed] = stack.enter_context(SharedBatches(loader))
        batches = shared[experiment.seed]
        own = first.like(experiment, batches.loader, batches.iterate)
        own.check_files(folder, False, say)
        own.check_growth(folder)
        work.append((own, folder))
    for own, folder in work:
        begin(folder, own.experiment, corpus)
    return work


def _check_data(folder: RunFolder, corpus: Corpus) -> None:
    before = folder.status().get("data")
    if before is not None and before != corpus.fingerprints():
        raise RequestError(
            f"the data of {folder.path} changed since the run was started; restore them, or start over with --fresh"
        )


def _train(
    work: Sequence[tuple[Descent, RunFolder]], phases: Phases, stop: Stop, say: Say
) -> list[Exception | None]:
    first, devices = work[0][0], jax.devices()
    template = first.engine.template(session.root_key(0), session.hyper_of(first.experiment))
    members = Members(first.program, template, len(work), devices)
    say(f"{len(work)} runs train as one program on {min(len(work), len(devices))} devices")
    runs = [
        _steps(own, folder, phases, stop, Member(members, index), say)
        for index, (own, folder) in enumerate(work)
    ]
    # Said once for all: a member that ends before the others must not take it back.
    with stop.breakable(False):
        return drive_all(runs, members, stop.breakable)


def _steps(
    work: Descent, folder: RunFolder, phases: Phases, stop: Stop, seat: Member, say: Say
) -> Steps:
    """The steps of one member; how it ends stands in its run.json, as that of a run alone."""

    def own(text: str) -> None:
        say(f"{folder.path.name}: {text}")

    try:
        yield from work.steps(folder, False, own, phases, stop, seat)
    except GeneratorExit:
        raise
    except BaseException as error:
        status = next((s for kind, s in ENDS.items() if isinstance(error, kind)), "failed")
        with contextlib.suppress(OSError):
            folder.update(status=status, error=str(error)[:500])
        raise
