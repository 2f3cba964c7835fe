"""Training a run folder: start, resume, or say that it is finished."""

import contextlib
import dataclasses
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from ablax import config as configuration
from ablax.config import RequestError
from ablax.data.corpus import Corpus, open_corpus
from ablax.data.tokenizers import load_tokenizer
from ablax.experiment import Experiment, resolve
from ablax.run import Preempted, RunFolder, keep_sources, now, provenance, write_json
from ablax.training import session
from ablax.training.checkpoints import Checkpoints
from ablax.training.compilation import keep_programs
from ablax.training.debug import overfit
from ablax.training.evaluators import Evaluator
from ablax.training.loop import Every, Loop
from ablax.training.meter import Meter
from ablax.training.records import Records
from ablax.training.schedules import unchanged_until
from ablax.training.writers import open_writers

Path = pathlib.Path


@dataclasses.dataclass(frozen=True)
class Run:
    """What became of a run.

    Attributes:
      workdir: its folder.
      finished: whether it reached its last step.
      step: updates done.
      metrics: its last evaluation.
      seconds: training time, evaluation and compilation included, over all starts.
      tokens_per_second: of the last record.
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
    workdir: str | pathlib.Path,
    *,
    extend: Iterable[Any] = (),
    fresh: bool = False,
    debug: bool = False,
    offline: bool = False,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Trains an experiment in a folder, or goes on with what is there.

    Args:
      config: a ConfigDict or an `Experiment`.
      workdir: the run's folder.
      extend: config classes from outside that the configuration names.
      fresh: moves what is in the folder aside and starts over.
      debug: one batch over and over, with a trap for NaN; fails unless the model overfits it. Nothing is kept.
      offline: forbids the network.
      progress: whether a progress bar and messages are shown on stderr.
      say: takes messages; stderr when None.

    Returns:
      The run; not finished if Ctrl-C ended it, which saves first.

    Raises:
      RequestError: for mistakes, or if the folder holds another experiment.
      NonFinite: if the loss becomes NaN or infinite.
      Preempted: after SIGTERM; the run was saved.
    """
    experiment = resolve(config, extend=extend)
    keep_programs()
    say = say or (lambda text: print(text, file=sys.stderr) if progress else None)
    folder = RunFolder(workdir)
    if debug:
        corpus = open_corpus(experiment.data, specials_of(experiment), offline=offline)
        found = overfit(experiment, corpus, say)
        return Run(folder.path, True, found["steps"], found, found["seconds"], None, 0)
    if fresh and (moved := folder.set_aside()):
        say(f"moved the old run to {moved}")
    resuming = folder.exists()
    if resuming:
        check_same(folder, experiment, extend)
    with folder.lock():
        if resuming and (done := finished(folder, experiment)):
            say(
                f"{folder.path} is finished at step {done.step}; raise training.steps to go on, or use --fresh"
            )
            return done
        corpus = open_run_corpus(experiment, folder, offline, progress, say)
        begin(folder, experiment, corpus)
        runner = fit if hasattr(experiment.model, "fit") else descend
        try:
            return runner(experiment, folder, corpus, progress, say)
        except BaseException as error:
            folder.update(
                status="preempted" if isinstance(error, Preempted) else "failed",
                error=str(error)[:500],
            )
            raise


def check_same(folder: RunFolder, experiment: Experiment, extend: Iterable[Any]) -> None:
    """Refuses to go on with a run of other `result` knobs.

    A longer run of the same schedule so far is allowed; that is checked again when durations are known.

    Raises:
      RequestError: showing the difference and the ways out.
    """
    old = resolve(folder.config(), extend=[*extend, *classes_of(experiment)])
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
    return [type(getattr(experiment, f.name)) for f in dataclasses.fields(experiment)] + [
        type(value) for value in configuration.dataclasses_in(experiment)
    ]


def finished(folder: RunFolder, experiment: Experiment) -> Run | None:
    """The finished run of a folder, if it is one and nothing more was asked for."""
    status = folder.status()
    old = folder.config()["training"]["steps"]
    if status.get("status") != "finished" or str(configuration.Duration(old)) != str(
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
    experiment: Experiment,
    folder: RunFolder,
    offline: bool,
    progress: bool,
    say: Callable[[str], None],
) -> Corpus:
    """The run's data; a run that goes on keeps its tokenizer and refuses data that changed.

    Raises:
      RequestError: if the data are not those with which the run was started.
    """
    exists = folder.tokenizer.is_dir()
    corpus = open_corpus(
        experiment.data,
        specials_of(experiment),
        tokenizer=load_tokenizer(folder.tokenizer) if exists else None,
        offline=offline,
        progress=_progress(say) if progress else None,
    )
    before = folder.status().get("data")
    if before is not None and before != corpus.fingerprints():
        raise RequestError(
            f"the data of {folder.path} changed since the run was started; restore them, or start over with --fresh"
        )
    if not exists:
        corpus.tokenizer.save(folder.tokenizer)
    return corpus


def specials_of(experiment: Experiment) -> tuple[str, ...]:
    """The special tokens that the objective needs."""
    return experiment.objective.specials(experiment.data.document_marks)


def _progress(say: Callable[[str], None]) -> Callable[[str, int, int], None]:
    shown: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        if done == total and what in shown:
            say(f"{what}: {total:,} documents in {time.perf_counter() - shown[what]:.1f} s")
        shown.setdefault(what, time.perf_counter())

    return report


def begin(folder: RunFolder, experiment: Experiment, corpus: Corpus) -> None:
    """Writes configuration and provenance; every start is recorded with what changed since the last."""
    status, start = folder.status(), provenance()
    if folder.exists():
        old = resolve(folder.config(), extend=classes_of(experiment))
        start["changed"] = configuration.differences(old, experiment)
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


def fit(
    experiment: Experiment,
    folder: RunFolder,
    corpus: Corpus,
    progress: bool,
    say: Callable[[str], None],
) -> Run:
    """A model that is counted, not descended."""
    began = time.perf_counter()
    store = corpus.stores["train"]
    model = experiment.model.fit(
        store.tokens, store.offsets, corpus.tokenizer.vocab_size, **corpus.marks
    )
    seconds = time.perf_counter() - began
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    model.save(folder.checkpoints / "ngram.npz")
    speed = len(store.tokens) / max(seconds, 1e-9)
    say(
        f"fitted {model.parameter_count:,} numbers to {len(store.tokens):,} tokens in {seconds:.1f} s"
    )
    evaluator = Evaluator(experiment.evaluation, corpus, experiment.objective, folder.evals)
    records = Records(folder.metrics_file)
    records.truncate(0)
    records.write({"step": 0, "split": "train", "tokens_per_second": speed})
    records.write(evaluator.fitted(model))
    records.close()
    folder.update(
        status="finished", step=0, ended=now(), seconds=seconds, parameters=model.parameter_count
    )
    return run_of(folder)


def descend(
    experiment: Experiment,
    folder: RunFolder,
    corpus: Corpus,
    progress: bool,
    say: Callable[[str], None],
) -> Run:
    """A model that is trained by gradient steps, from the newest good checkpoint or from the start."""
    began = time.perf_counter()
    loader = session.training_loader(experiment, corpus)
    clock = session.Clock.of(experiment.training.steps, loader)
    program = session.build_program(experiment, corpus.tokenizer.vocab_size, clock)
    engine = session.build_engine(experiment, program)
    evaluator = Evaluator(experiment.evaluation, corpus, experiment.objective, folder.evals)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(
            folder.checkpoints, experiment.checkpoint.keep, session.best_metric(experiment), say=say
        )
        stack.callback(checkpoints.close)
        meter = Meter(loader.tokens_per_step)
        state, cursor = starting_state(experiment, engine, checkpoints, say)
        check_schedule(folder, experiment, program, clock, int(state.step))
        if cursor:
            meter.restore(cursor["meter"])
        before = cursor.get("seconds", 0.0)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        folder.update(parameters=parameters, total_steps=clock.total)
        writers = stack.enter_context(
            open_writers(
                experiment.writers, folder, clock.total, cursor.get("bytes", 0), progress, say
            )
        )
        seconds = lambda: before + time.perf_counter() - began  # noqa: E731

        def evaluate(state: Any, step: int) -> dict[str, Any]:
            params = program.evaluation_params(state)
            hyper = state.hyper.get("model", {})
            return evaluator.neural(program.module, params, hyper, step, step == clock.total)

        def save(step: int, state: Any, record: Mapping[str, Any] | None, metered: Any) -> None:
            cursor = {"bytes": writers.cursor(), "meter": metered, "seconds": seconds()}
            scores = {k: v for k, v in (record or {}).items() if isinstance(v, float)}
            checkpoints.save(step, state, cursor, configuration.to_dict(experiment), scores)
            folder.update(step=step, seconds=seconds())

        loop = Loop(
            engine=engine,
            batches=lambda step: stack.enter_context(loader.iterate(step)),
            total=clock.total,
            every=Every(
                log=experiment.writers.every,
                evaluate=clock(experiment.evaluation.every),
                save=clock(experiment.checkpoint.every),
            ),
            meter=meter,
            write=writers.write,
            evaluate=evaluate,
            save=save,
            stop=stack.enter_context(signals()),
            last_good=checkpoints.latest_step,
        )
        try:
            state = loop.run(state)
        except Preempted as reason:
            checkpoints.wait()
            if "Ctrl-C" not in str(reason):
                raise
            say(str(reason))
            folder.update(status="interrupted", seconds=seconds())
            return run_of(folder)
        checkpoints.wait()
        folder.update(status="finished", step=int(state.step), ended=now(), seconds=seconds())
    return run_of(folder)


def starting_state(
    experiment: Experiment, engine: Any, checkpoints: Checkpoints, say: Callable[[str], None]
) -> tuple[Any, dict[str, Any]]:
    """The newest good state with its cursor, or a fresh one with an empty cursor."""
    hyper = session.hyper_of(experiment)
    if checkpoints.latest_step() is None:
        return engine.init(session.root_key(experiment.seed), hyper), {}
    state, cursor, step = checkpoints.restore(engine.template(session.root_key(0), hyper))
    say(f"resuming at step {step}")
    return state, cursor


def check_schedule(
    folder: RunFolder, experiment: Experiment, program: Any, clock: session.Clock, step: int
) -> None:
    """Lets a run go on to another number of steps only where its learning rates so far stay what they were.

    Raises:
      RequestError: if the schedule would have been another one, or the run is past its new end.
    """
    old = folder.status().get("total_steps")
    if old is None or old == clock.total:
        return
    if step > clock.total:
        raise RequestError(
            f"{folder.path} is at step {step}, past training.steps={clock.total}; raise it"
        )
    before = session.Clock(old, clock.tokens_per_step, clock.steps_per_epoch)
    hyper = session.hyper_of(experiment).get("schedule", {})
    factors = [experiment.schedule.build(c.total, c, hyper) for c in (before, clock)]
    if not unchanged_until(step, *factors):
        raise RequestError(
            f"training.steps from {old} to {clock.total} changes the learning rates of the {step} steps already done; "
            "use schedule.kind=constant or wsd for runs that may grow, start over with --fresh, or "
            f"branch off with `ablax fork {folder.path} --workdir=NEW`"
        )


@contextlib.contextmanager
def signals() -> Iterator[Callable[[], str | None]]:
    """Yields a function that says why the run should stop: SIGTERM, or Ctrl-C once (twice ends it at once).

    Outside the main thread no signal can be caught, and nothing asks.
    """
    reason: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    old = {int(number): signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: Any) -> None:
        if reason:
            signal.signal(number, old[number])
            signal.raise_signal(number)
        reason.append("stopped by Ctrl-C" if number == signal.SIGINT else "stopped by SIGTERM")

    for number in old:
        signal.signal(number, handle)
    try:
        yield lambda: reason[0] if reason else None
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
