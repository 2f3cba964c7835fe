"""Training a run folder: start, resume, or say that it is finished."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ablax import config as configuration
from ablax import distributed
from ablax.config import RequestError
from ablax.data.corpus import Corpus, open_corpus
from ablax.data.progress import Progress, told
from ablax.data.tokenizers import load_tokenizer
from ablax.experiment import Experiment, resolve
from ablax.run import Paused, Preempted, RunFolder, keep_sources, provenance, write_json
from ablax.training.compilation import keep_programs
from ablax.training.debug import overfit
from ablax.training.descent import Descent
from ablax.training.fitting import Fitting
from ablax.training.profile import profiling
from ablax.training.samples import check_split
from ablax.training.thinning import is_due, thin
from ablax.training.together import facts, together

# What `status` of run.json says of a run that an exception ended, first match; all others are "failed".
ENDS = {Paused: "paused", Preempted: "preempted", KeyboardInterrupt: "interrupted"}


@dataclasses.dataclass(frozen=True)
class Run:
    """What became of a run.

    Attributes:
      workdir: its folder.
      finished: whether it reached its last step.
      step: updates done.
      metrics: its last evaluation.
      seconds: training time, evaluation and compilation included, over all starts.
      tokens_per_second: median over the records.
      parameters: how many numbers the model has.
    """

    workdir: Path
    finished: bool
    step: int
    metrics: dict[str, Any]
    seconds: float
    tokens_per_second: float | None
    parameters: int


def train(
    config: Any,
    workdir: str | Path,
    *,
    extend: Iterable[Any] = (),
    fresh: bool = False,
    debug: bool = False,
    offline: bool = False,
    profile: tuple[int, int] | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
    sweep: Mapping[str, Any] | None = None,
    until: int | None = None,
) -> Run:
    """Trains an experiment in a folder, or goes on with what is there.

    Args:
      config: a ConfigDict or an `Experiment`.
      workdir: the run's folder.
      extend: config classes from outside that the configuration names.
      fresh: moves what is in the folder aside and starts over.
      debug: one batch over and over, with a trap for NaN; fails unless the model overfits it. Nothing is kept.
      offline: forbids the network.
      profile: first and last step of a JAX trace in the folder's `profile/`.
      progress: whether a progress bar and messages are shown on stderr.
      say: takes messages; stderr when None.
      until: the step at which it pauses, evaluated and saved, to go on in another call.

    Returns the run; not finished if Ctrl-C ended it, which saves first.

    Raises:
      RequestError: for mistakes, or if the folder holds another experiment.
      RunFailed: if the loss becomes NaN or infinite, if a checkpoint cannot be saved, or by `debug`.
      Preempted: after SIGTERM or SIGUSR1; the run was saved, unless there was nothing new. `Paused`: at `until`.
      KeyboardInterrupt: by Ctrl-C before the first step, or twice.
    """
    experiment = resolve(config, extend=extend)
    keep_programs()
    say = say or (lambda text: print(text, file=sys.stderr) if progress else None)
    ranks = distributed.ranks()
    folder = RunFolder(workdir, writer=ranks.first)
    progress = progress and ranks.first
    if debug:
        if hasattr(experiment.model, "fit"):
            raise RequestError(
                f"--debug takes steps, and a {type(experiment.model).__name__} is fitted to counts; leave it out"
            )
        corpus = open_corpus(experiment.data, specials_of(experiment), offline=offline)
        found = overfit(experiment, corpus, say)
        return Run(folder.path, True, found["steps"], found, found["seconds"], None, 0)
    traced = profiling(profile if ranks.first else None, folder.path / "profile", say)
    with traced as phases, together(ranks, experiment, folder, phases) as stop:
        work: Descent | Fitting | None = None
        stop.until = until
        report = told(say) if progress else None
        if fresh:
            with folder.lock():  # nobody else may be writing what is moved away
                # What can be refused is refused while the old run is still in its place.
                specials = specials_of(experiment)
                work = planned(
                    experiment,
                    open_corpus(experiment.data, specials, offline=offline, progress=report),
                    folder,
                    fresh,
                    say,
                )
            if moved := folder.set_aside():
                say(f"moved the old run to {moved}")
            ranks.agree("fresh start", {})
        if resuming := folder.exists():
            check_same(folder, experiment, extend)
        with folder.lock():
            if work is None:
                if resuming and (done := finished(folder, experiment)):
                    settle(folder, experiment, None, offline, say)
                    say(
                        f"{folder.path} is finished at step {done.step}; raise training.steps to go on, or use --fresh"
                    )
                    return done
                corpus = open_run_corpus(experiment, folder, offline, report)
                work = planned(experiment, corpus, folder, fresh, say)
                work.check_growth(folder)
            ranks.agree("data", facts(folder, work.corpus))
            if folder.writer:
                begin(folder, experiment, work.corpus)
                if sweep is not None:
                    folder.update(sweep=dict(sweep))
            try:
                work.run(folder, progress, say, phases, stop)
            except BaseException as error:
                status = next((s for kind, s in ENDS.items() if isinstance(error, kind)), "failed")
                with contextlib.suppress(
                    OSError
                ):  # a full disk: what ended the run is what must be said
                    folder.update(status=status, error=str(error)[:500])
                raise
            # Process 0 has written all there is to read, and no rank leaves while another may need it.
            ranks.agree("end", {}, experiment.heartbeat.patience)
            settle(folder, experiment, work, offline, say)
    return run_of(folder)


def settle(
    folder: RunFolder, experiment: Experiment, work: Any, offline: bool, say: Callable[[str], None]
) -> None:
    """Leaves of a finished run's checkpoints what `checkpoint.at_end` says; `work` is planned anew if it is None."""
    if is_due(experiment, folder):
        plan = work or Descent.plan(experiment, open_run_corpus(experiment, folder, offline, None))
        thin(experiment, plan.engine, folder, say)


def planned(
    experiment: Experiment,
    corpus: Corpus,
    folder: RunFolder,
    fresh: bool,
    say: Callable[[str], None],
) -> Descent | Fitting:
    """The work of a run, put together before anything is written.

    Raises:
      RequestError: for what does not fit the data, the devices or the disk.
    """
    fitted = hasattr(experiment.model, "fit")
    if fitted and distributed.ranks().several:
        raise RequestError(
            f"a {type(experiment.model).__name__} is fitted by one process; start one, or set ABLAX_PROCESS_COUNT=1"
        )
    work = Fitting(experiment, corpus) if fitted else Descent.plan(experiment, corpus)
    check_split(corpus, experiment.evaluation.split)
    work.check_files(folder, fresh, say)
    return work


def check_same(folder: RunFolder, experiment: Experiment, extend: Iterable[Any]) -> None:
    """Refuses to go on with a run of other `result` knobs.

    A longer run of the same schedule so far is allowed; that is checked again when durations are known.

    Raises:
      RequestError: showing the difference and the ways out.
    """
    own = [*extend, *classes_of(experiment)]
    old = resolve(folder.config(), extend=own, imports=False)
    changed = configuration.differences(old, experiment, "result")
    changed.pop("training.steps", None)
    code = folder.status().get("extension_code", {})
    own = {
        name: configuration.digest(text)
        for name, text in configuration.extension_sources(experiment).items()
    }
    for name in sorted(code | own):
        if code.get(name) != own.get(name):
            changed[f"source of {name}"] = ("as the run was started", "edited")
    if changed:
        shown = ", ".join(f"{path}: {a!r} -> {b!r}" for path, (a, b) in list(changed.items())[:6])
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        raise RequestError(
            f"{folder.path} holds a run with other results ({shown}{more}); set them back, choose another --workdir, "
            f"start over with --fresh, or branch off with `ablax fork {folder.path} --workdir=NEW`"
        )


def classes_of(experiment: Experiment) -> list[type]:
    """The config classes of a configuration, which may come from outside."""
    return [type(value) for value in configuration.dataclasses_in(experiment)]


def finished(folder: RunFolder, experiment: Experiment) -> Run | None:
    """The finished run of a folder, if it is one and nothing more was asked for."""
    old = folder.config()["training"]["steps"]
    if folder.status().get("status") != "finished" or str(configuration.Duration(old)) != str(
        experiment.training.steps
    ):
        return None
    return run_of(folder)


def run_of(folder: RunFolder) -> Run:
    """What run.json and the metrics say about a run."""
    status = folder.status()
    records = list(folder.metrics())
    last = [r for r in records if r["split"] != "train"]
    speeds = [r["tokens_per_second"] for r in records if "tokens_per_second" in r]
    return Run(
        workdir=folder.path,
        finished=status.get("status") == "finished",
        step=status.get("step", 0),
        metrics=last[-1] if last else {},
        seconds=status.get("seconds", 0.0),
        tokens_per_second=sorted(speeds)[len(speeds) // 2] if speeds else None,
        parameters=status.get("parameters", 0),
    )


def open_run_corpus(
    experiment: Experiment, folder: RunFolder, offline: bool, progress: Progress | None
) -> Corpus:
    """The run's data; a run that goes on keeps its tokenizer and refuses data that changed.

    Raises:
      RequestError: if the data are not those with which the run was started.
    """
    corpus = open_corpus(
        experiment.data,
        specials_of(experiment),
        tokenizer=load_tokenizer(folder.tokenizer) if folder.tokenizer.is_dir() else None,
        offline=offline,
        progress=progress,
    )
    before = folder.status().get("data")
    if before is not None and before != corpus.fingerprints():
        raise RequestError(
            f"the data of {folder.path} changed since the run was started; restore them, or start over with --fresh"
        )
    return corpus


def specials_of(experiment: Experiment) -> tuple[str, ...]:
    """The special tokens that the objective needs."""
    return experiment.objective.specials(experiment.data.document_marks)


def begin(folder: RunFolder, experiment: Experiment, corpus: Corpus) -> None:
    """Writes configuration and provenance; every start is recorded with what changed since the last."""
    status, start = folder.status(), provenance()
    if folder.exists():
        old = resolve(folder.config(), extend=classes_of(experiment), imports=False)
        start["changed"] = configuration.differences(old, experiment)
    if not folder.tokenizer.is_dir():
        corpus.tokenizer.save(folder.tokenizer)
    sources = configuration.extension_sources(experiment)
    keep_sources(folder.path, sources)
    folder.update(
        name=experiment.name,
        status="running",
        error=None,
        fingerprint=configuration.fingerprint(experiment),
        data=corpus.fingerprints(),
        extension_code={name: configuration.digest(text) for name, text in sources.items()},
        starts=[*status.get("starts", []), start],
        parent=status.get("parent"),
    )
    write_json(folder.path / "config.json", configuration.to_dict(experiment))
