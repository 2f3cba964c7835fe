"""A run by gradient steps: everything that a `Loop` needs, put together from an experiment, a folder and a corpus."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from ablax import config as configuration
from ablax.config import RequestError, suggest
from ablax.data.corpus import Corpus
from ablax.data.loader import Loader
from ablax.distributed import ranks
from ablax.models.kernel_choice import Choice
from ablax.run import Preempted, RunFolder, now
from ablax.training import session
from ablax.training.canary import check_attention, with_kernel
from ablax.training.checkpoints import Checkpoints
from ablax.training.disk import check_run, size_of
from ablax.training.evaluators import Evaluator, check_evaluation, metrics_of
from ablax.training.every import Every
from ablax.training.growth import check_growth
from ablax.training.ledger import Ledger
from ablax.training.loop import Loop
from ablax.training.meter import Meter
from ablax.training.phases import Phases
from ablax.training.recovery import NOTHING, Recovery, Rewind, events_of, position
from ablax.training.saving import Saving
from ablax.training.seat import Alone, Seat, Steps, drive
from ablax.training.signals import Stop, Stopped, catch
from ablax.training.speed import Speed, devices_now
from ablax.training.start import Donor
from ablax.training.state import TrainState, without_hyper
from ablax.training.step import Program
from ablax.training.stopwatch import Stopwatch
from ablax.training.writers import open_writers

Say = Callable[[str], None]
Iterate = Callable[[int], contextlib.AbstractContextManager[Iterator[Any]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Descent:
    """What a run by gradient steps is made of, before anything is written.

    Attributes:
      experiment: resolved.
      corpus: its data.
      loader: its batches.
      clock: its length.
      program: its pure functions.
      engine: the program on its devices.
      kernel: of its attention, if it has any.
      iterate: its batches from a step of the loader on.
    """

    experiment: Any
    corpus: Corpus
    loader: Loader
    clock: session.Clock
    program: Program
    engine: Any
    kernel: Choice | None
    iterate: Iterate

    @classmethod
    def plan(
        cls, experiment: Any, corpus: Corpus, devices: Sequence[Any] | None = None
    ) -> "Descent":
        """Puts a run together, over these devices (None = all).

        Raises:
          RequestError: if lengths, sizes, the schedule, the batch or the devices do not fit each other.
        """
        devices = jax.devices() if devices is None else devices
        loader = session.training_loader(experiment, corpus)
        clock = session.Clock.of(experiment.training.steps, loader)
        chosen, kernel = with_kernel(experiment, devices[0].platform)
        program = session.build_program(chosen, corpus.tokenizer.vocab_size, clock)
        best = session.best_metric(experiment)
        known = [name for name in metrics_of(experiment) if "accuracy" not in name]
        if best not in known:
            problem = "is no metric of these evaluations whose smallest value is the best"
            raise RequestError(f"checkpoint.best={best} {problem}{suggest(best, known)}")
        check_evaluation(experiment, corpus, program.module)
        engine = session.build_engine(experiment, program, devices)
        return cls(experiment, corpus, loader, clock, program, engine, kernel, loader.iterate)

    def like(self, experiment: Any, loader: Loader, iterate: Iterate) -> "Descent":
        """The same program with an experiment's knobs that are not in it (see `groups`)."""
        return dataclasses.replace(self, experiment=experiment, loader=loader, iterate=iterate)

    def check_growth(self, folder: RunFolder) -> None:
        """Lets a run go on to another number of steps only where its learning rates so far stay what they were.

        Raises:
          RequestError: if the schedule would have been another one, or the run is past its new end.
        """
        check_growth(self.experiment, self.clock, folder)

    def check_files(self, folder: RunFolder, fresh: bool, say: Say) -> None:
        """Compares the size of a checkpoint with what is free, and a fresh run's parameters with those it takes.

        Raises:
          RequestError: if not even one checkpoint fits, or see `Donor.of`.
        """
        shapes = session.abstract_state(self.program, self.experiment)
        if fresh or not any(folder.checkpoints.glob("[0-9]*")):
            self.donor(shapes, say)
        size, keep = size_of(without_hyper(shapes)), self.experiment.checkpoint.keep
        if warning := check_run(folder.path, size, keep):
            say(warning)

    def run(self, folder: RunFolder, progress: bool, say: Say, phases: Phases, stop: Stop) -> None:
        """Trains from the newest good checkpoint, or from the start, to the end.

        Raises:
          Diverged, Preempted, Stopped, SaveError: see `Loop.run` and `Checkpoints.save`.
        """
        seat = Alone(self.engine, stop)
        drive(self.steps(folder, progress, say, phases, stop, seat), seat.step)

    def steps(
        self, folder: RunFolder, progress: bool, say: Say, phases: Phases, stop: Stop, seat: Seat
    ) -> Steps:
        """See `run`; who drives it makes the steps in the seat."""
        refused, events = None, events_of(folder)
        while True:
            try:
                way = self.start(folder, progress, say, phases, stop, seat, refused, events)
                return (yield from way)
            except Rewind as rewind:
                refused = rewind.event

    def start(
        self,
        folder: RunFolder,
        progress: bool,
        say: Say,
        phases: Phases,
        stop: Stop,
        seat: Seat,
        refused: Mapping[str, Any] | None,
        events: list[dict[str, Any]],
    ) -> Steps:
        """One way from a checkpoint to the end, or to a `Rewind`; `refused` says why there is another one."""
        experiment, clock = self.experiment, self.clock
        with contextlib.ExitStack() as stack:
            best = session.best_metric(experiment)
            checkpoints = self.checkpoints(folder, best, say)
            stack.callback(checkpoints.close)
            state, cursor = self.starting_state(folder, checkpoints, say)
            if self.kernel is not None:
                check_attention(self, self.kernel, folder, state, say)
            watch = Stopwatch(cursor.get("seconds", 0.0))
            parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            folder.update(parameters=parameters, total_steps=clock.total, devices=devices_now())
            before = cursor.get("bytes", 0)
            writers = stack.enter_context(
                open_writers(experiment.writers, folder, clock.total, before, progress, say)
            )
            saving = Saving(checkpoints, folder, say)
            recovery = Recovery(experiment.training.guard, folder, saving.last_good, say, events)
            recovery.restore(cursor.get("guard", NOTHING), int(state.step))
            if refused:
                recovery.rewound(refused, int(state.step))
            ledger = Ledger(folder.path, self.loader, recovery.batch, say)
            loop = self.loop(
                folder, saving, writers, watch, stack, phases, stop, seat, recovery, ledger
            )
            if cursor:
                loop.meter.restore(cursor["meter"])
            # From here on there is something to save.
            stack.enter_context(stop.breakable(False))
            catch(stop)
            try:
                state = yield from loop.run(state, owed=bool(cursor) and cursor["owed"])
            except Preempted as reason:
                saving.finish()
                if "Ctrl-C" not in str(reason):
                    raise
                say(str(reason))
                folder.update(status="interrupted", seconds=watch.seconds())
                return
            saving.finish()
            ended = {"ended": now(), "seconds": watch.seconds()}
            folder.update(status="finished", step=int(state.step), **ended)

    def donor(self, state: TrainState, say: Say) -> Donor | None:
        """The run whose parameters a fresh one takes; see `Donor.of`."""
        return Donor.of(self.experiment.init, state.params, self.corpus.tokenizer, say)

    def checkpoints(self, folder: RunFolder, best: str | None, say: Say) -> Checkpoints:
        """The folder's checkpoints; process 0 makes their folder before the others look."""
        if folder.writer:
            folder.checkpoints.mkdir(exist_ok=True)
        ranks().agree("checkpoint folder", {})
        return Checkpoints(
            folder.checkpoints,
            self.experiment.checkpoint.keep,
            best,
            writer=folder.writer,
            say=say,
        )

    def loop(
        self,
        folder: RunFolder,
        saving: Saving,
        writers: Any,
        watch: Stopwatch,
        stack: contextlib.ExitStack,
        phases: Phases,
        stop: Stop,
        seat: Seat,
        recovery: Recovery,
        ledger: Ledger,
    ) -> Loop:
        """The loop with its verbs."""
        stack.enter_context(ledger)
        experiment, program, clock = self.experiment, self.program, self.clock
        evaluator = Evaluator(
            experiment.evaluation,
            self.corpus,
            experiment.objective,
            folder.evals if folder.writer else None,
            over=self.engine.over,
            before_batch=stop.check,
            unwritten=saving.say,
        )
        others = ranks()

        def evaluate(state: TrainState, step: int) -> dict[str, Any] | None:
            params = program.evaluation_params(state)
            hyper = state.hyper.get("model", {})
            with contextlib.suppress(Stopped):
                last = step in (clock.total, stop.until)
                record = evaluator.neural(program.module, params, hyper, step, last)
                # Which checkpoint is the best, and so is kept, must not depend on the last bit of a rank's arithmetic.
                return others.share("record", record, experiment.heartbeat.patience)

        def save(
            step: int, state: TrainState, record: Any, going_on: Mapping[str, Any], ending: bool
        ) -> None:
            ledger.flush()  # or a run that goes on from here after a kill would leave a gap
            cursor = {"bytes": writers.cursor(), "seconds": watch.seconds(), **going_on}
            scores = {k: v for k, v in (record or {}).items() if isinstance(v, float)}
            kept = without_hyper(state)
            saving.save(step, kept, cursor, configuration.to_dict(experiment), scores, ending)

        batches = stack.enter_context(contextlib.ExitStack())

        def iterate(step: int) -> Any:
            batches.close()
            return batches.enter_context(self.iterate(position(step, recovery.left_out)))

        return Loop(
            seat=seat,
            batches=iterate,
            every=Every(
                clock.total,
                log=experiment.writers.every,
                evaluate=clock(experiment.evaluation.every),
                save=clock(experiment.checkpoint.every),
                until=stop.until,
            ),
            meter=Meter(Speed.of(experiment, self.corpus.tokenizer.vocab_size, jax.devices())),
            write=writers.write,
            evaluate=evaluate,
            save=save,
            stop=stop,
            recovery=recovery,
            seen=ledger.write,
            phases=phases,
        )

    def starting_state(
        self, folder: RunFolder, checkpoints: Checkpoints, say: Say
    ) -> tuple[TrainState, dict[str, Any]]:
        """The newest good state with its cursor, or a fresh one with an empty cursor."""
        hyper = session.hyper_of(self.experiment)
        if checkpoints.latest_step() is None:
            state = self.engine.init(session.root_key(self.experiment.seed), hyper)
            if donor := self.donor(state, say):
                state = donor.give(self.program, state, say)
                folder.update(parent=donor.record())
            return state, {}
        template = self.engine.template(session.root_key(0), hyper)
        state, cursor, step = checkpoints.restore(without_hyper(template))
        ranks().agree("restored checkpoint", {"checkpoint": step})
        say(f"resuming at step {step}")
        placed = jax.tree.map(
            lambda x, like: jax.device_put(x, like.sharding), hyper, template.hyper
        )
        return dataclasses.replace(state, hyper=placed), cursor
