"""A run by gradient steps: everything that a `Loop` needs, put together from an experiment, a folder and a corpus."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ablax import config as configuration
from ablax.config import RequestError, suggest
from ablax.data.corpus import Corpus
from ablax.data.loader import Loader
from ablax.evaluation.scoring import check_context
from ablax.run import Preempted, RunFolder, now
from ablax.training import session
from ablax.training.checkpoints import Checkpoints, SaveError
from ablax.training.evaluators import Evaluator, metrics_of
from ablax.training.loop import Every, Loop
from ablax.training.meter import Meter
from ablax.training.phases import Phases
from ablax.training.schedules import unchanged_until
from ablax.training.signals import Stop, Stopped, catch
from ablax.training.state import TrainState, without_hyper
from ablax.training.step import Program
from ablax.training.writers import open_writers

Say = Callable[[str], None]


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
    """

    experiment: Any
    corpus: Corpus
    loader: Loader
    clock: session.Clock
    program: Program
    engine: Any

    @classmethod
    def plan(cls, experiment: Any, corpus: Corpus) -> "Descent":
        """Puts a run together.

        Raises:
          RequestError: if lengths, sizes, the schedule, the batch or the devices do not fit each other.
        """
        loader = session.training_loader(experiment, corpus)
        clock = session.Clock.of(experiment.training.steps, loader)
        program = session.build_program(experiment, corpus.tokenizer.vocab_size, clock)
        best = session.best_metric(experiment)
        known = [name for name in metrics_of(experiment) if "accuracy" not in name]
        if best not in known:
            problem = "is no metric of these evaluations whose smallest value is the best"
            raise RequestError(f"checkpoint.best={best} {problem}{suggest(best, known)}")
        check_context(
            program.module, experiment.evaluation.context or experiment.data.sequence_length
        )
        engine = session.build_engine(experiment, program)
        return cls(experiment, corpus, loader, clock, program, engine)

    def check_growth(self, folder: RunFolder) -> None:
        """Lets a run go on to another number of steps only where its learning rates so far stay what they were.

        Raises:
          RequestError: if the schedule would have been another one, or the run is past its new end.
        """
        status, clock = folder.status(), self.clock
        old, step = status.get("total_steps"), status.get("step", 0)
        forked = status.get("status") == "forked"
        if step > clock.total or (forked and step == clock.total):
            raise RequestError(
                f"{folder.path} is at step {step}, and training.steps={clock.total} leaves nothing to do; raise it"
            )
        if old is None or old == clock.total:
            return
        before = session.Clock(old, clock.tokens_per_step, clock.steps_per_epoch)
        hyper = session.hyper_of(self.experiment).get("schedule", {})
        factors = [self.experiment.schedule.build(c.total, c, hyper) for c in (before, clock)]
        if not unchanged_until(step, *factors):
            raise RequestError(
                f"training.steps from {old} to {clock.total} changes the learning rates of the {step} steps already "
                "done; use schedule.kind=constant or wsd for runs that may grow, start over with --fresh, or branch "
                f"off with `ablax fork {folder.path} --workdir=NEW`"
            )

    def run(self, folder: RunFolder, progress: bool, say: Say, phases: Phases, stop: Stop) -> None:
        """Trains from the newest good checkpoint, or from the start, to the end.

        Raises:
          NonFinite, Preempted, Stopped, SaveError: see `Loop.run` and `Checkpoints.save`.
        """
        experiment, clock = self.experiment, self.clock
        with contextlib.ExitStack() as stack:
            best = session.best_metric(experiment)
            checkpoints = Checkpoints(folder.checkpoints, experiment.checkpoint.keep, best, say=say)
            stack.callback(checkpoints.close)
            state, cursor = self.starting_state(checkpoints, say)
            watch = Stopwatch(cursor.get("seconds", 0.0))
            parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            folder.update(parameters=parameters, total_steps=clock.total)
            writers = stack.enter_context(
                open_writers(
                    experiment.writers, folder, clock.total, cursor.get("bytes", 0), progress, say
                )
            )
            loop = self.loop(folder, checkpoints, writers, watch, stack, phases, stop)
            if cursor:
                loop.meter.restore(cursor["meter"])
            # From here on there is something to save.
            stack.enter_context(stop.breakable(False))
            catch(stop)
            try:
                state = loop.run(state, owed=bool(cursor) and cursor["owed"])
            except Preempted as reason:
                checkpoints.wait()
                if "Ctrl-C" not in str(reason):
                    raise
                say(str(reason))
                folder.update(status="interrupted", seconds=watch.seconds())
                return
            checkpoints.wait()
            ended = {"ended": now(), "seconds": watch.seconds()}
            folder.update(status="finished", step=int(state.step), **ended)

    def loop(
        self,
        folder: RunFolder,
        checkpoints: Checkpoints,
        writers: Any,
        watch: "Stopwatch",
        stack: contextlib.ExitStack,
        phases: Phases,
        stop: Stop,
    ) -> Loop:
        """The loop with its verbs."""
        experiment, program, clock = self.experiment, self.program, self.clock
        evaluator = Evaluator(
            experiment.evaluation,
            self.corpus,
            experiment.objective,
            folder.evals,
            before_batch=stop.check,
        )

        def evaluate(state: TrainState, step: int) -> dict[str, Any] | None:
            params = program.evaluation_params(state)
            hyper = state.hyper.get("model", {})
            with contextlib.suppress(Stopped):
                return evaluator.neural(program.module, params, hyper, step, step == clock.total)

        def save(step: int, state: TrainState, record: Any, going_on: Mapping[str, Any]) -> None:
            cursor = {"bytes": writers.cursor(), "seconds": watch.seconds(), **going_on}
            scores = {k: v for k, v in (record or {}).items() if isinstance(v, float)}
            kept = without_hyper(state)
            checkpoints.save(step, kept, cursor, configuration.to_dict(experiment), scores)
            folder.update(step=step, seconds=watch.seconds())

        def last_good() -> int | None:
            with contextlib.suppress(SaveError):
                checkpoints.wait()
            return checkpoints.latest_step()

        return Loop(
            engine=self.engine,
            batches=lambda step: stack.enter_context(self.loader.iterate(step)),
            total=clock.total,
            every=Every(
                log=experiment.writers.every,
                evaluate=clock(experiment.evaluation.every),
                save=clock(experiment.checkpoint.every),
            ),
            meter=Meter(self.loader.tokens_per_step),
            write=writers.write,
            evaluate=evaluate,
            save=save,
            stop=stop,
            last_good=last_good,
            phases=phases,
        )

    def starting_state(
        self, checkpoints: Checkpoints, say: Say
    ) -> tuple[TrainState, dict[str, Any]]:
        """The newest good state with its cursor, or a fresh one with an empty cursor."""
        hyper = session.hyper_of(self.experiment)
        if checkpoints.latest_step() is None:
            return self.engine.init(session.root_key(self.experiment.seed), hyper), {}
        template = self.engine.template(session.root_key(0), hyper)
        state, cursor, step = checkpoints.restore(without_hyper(template))
        say(f"resuming at step {step}")
        placed = jax.tree.map(
            lambda x, like: jax.device_put(x, like.sharding), hyper, template.hyper
        )
        return dataclasses.replace(state, hyper=placed), cursor


class Stopwatch:
    """Seconds of a run over all its starts.

    Args:
      before: those of earlier starts.
    """

    def __init__(self, before: float):
        self._before, self._began = before, time.perf_counter()

    def seconds(self) -> float:
        """Until now."""
        return self._before + time.perf_counter() - self._began
