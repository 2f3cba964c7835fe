"""The loop: draw, step, and in this order evaluate, save."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ablax.config import Duration, RequestError, knob
from ablax.run import Preempted
from ablax.training.meter import Meter, NonFinite, finite
from ablax.training.phases import Phases
from ablax.training.signals import Stop, Stopped
from ablax.training.state import TrainState
from ablax.training.step import StepConfig


@dataclasses.dataclass(frozen=True)
class TrainingConfig(StepConfig):
    """How long and how large."""

    steps: Duration = knob(Duration(1000), "Length of the run: steps, epochs or tokens.")
    batch_size: int = knob(32, "Rows of a global batch, B.")

    def __post_init__(self):
        super().__post_init__()
        if self.batch_size < 1:
            raise RequestError(f"batch_size={self.batch_size} must be at least 1 row")
        if self.steps.unit == "%":
            raise RequestError(
                f"steps={self.steps} cannot be a share of itself; write steps, epochs or tokens"
            )


@dataclasses.dataclass(frozen=True)
class Every:
    """After how many steps something is due; 0 = only at the end."""

    log: int
    evaluate: int
    save: int


@dataclasses.dataclass(eq=False)
class Loop:
    """One verb per object; their order is law.

    Attributes:
      engine: `step(state, batch) -> (state, metrics)`.
      batches: start step -> iterator of batches.
      total: steps of the run.
      every: when to log, evaluate and save.
      meter: adds up the steps' sums.
      write: takes a record.
      evaluate: (state, step) -> record of the evaluation, or None if the wish to stop broke it off.
      save: (step, state, record of the evaluation or None, what `run` and the meter need to go on).
      stop: whether somebody wants the run to end now.
      last_good: step of the newest checkpoint, for messages.
      phases: where the run is.
    """

    engine: Any
    batches: Callable[[int], Any]
    total: int
    every: Every
    meter: Meter
    write: Callable[[dict[str, Any]], None]
    evaluate: Callable[[TrainState, int], dict[str, Any] | None]
    save: Callable[[int, TrainState, Mapping[str, Any] | None, Mapping[str, Any]], None]
    stop: Stop
    last_good: Callable[[], int | None]
    phases: Phases = dataclasses.field(default_factory=Phases)

    def run(self, state: TrainState, owed: bool = False) -> TrainState:
        """From the state's step to the last.

        Args:
          state: where to begin.
          owed: whether the evaluation of the state's step was broken off when it was saved.

        Raises:
          NonFinite: naming the step and the last good checkpoint; the non-finite state is not saved.
          Preempted: after the state was saved, if `stop` asked for it.
          Stopped: if it asked for it before the first step was made: there is nothing new to save.
        """
        start, pending = int(state.step), None
        saved = start
        if owed:
            self.conclude(state, start, evaluating=True, saving=self.due(self.every.save, start))
        batches, clock = self.batches(start), time.perf_counter()
        for done in range(start + 1, self.total + 1):
            self.phases.enter("data", done)
            try:
                with self.stop.breakable(True):
                    batch = next(batches)
            except Stopped as reason:
                if pending:
                    self.settle(*pending, clock)
                if saved < done - 1:
                    self.conclude(state, done - 1, evaluating=False, saving=True)
                raise self.preempted(str(reason), done - 1) from None
            self.phases.enter("compile" if done == start + 1 else "step", done)
            with self.stop.breakable(done == start + 1):
                state, metrics = self.engine.step(state, batch)
            # Fetched one step late: the device works on this step while the host reads the one before, and there
            # are never more than two programs in flight.
            if pending:
                clock = self.settle(*pending, clock)
            pending = (done, metrics)
            evaluating, saving = (self.due(n, done) for n in (self.every.evaluate, self.every.save))
            if not (evaluating or saving or self.stop()):
                continue
            clock = self.settle(*pending, clock)
            pending = None
            self.conclude(state, done, evaluating, saving)
            saved = done if saving else saved
            clock = time.perf_counter()
        self.phases.enter("end", self.total)
        return state

    def conclude(self, state: TrainState, done: int, evaluating: bool, saving: bool) -> None:
        """Evaluates and saves after a step, and ends the run if somebody wants it.

        An evaluation that is broken off is owed: the checkpoint says so, and the next start makes up for it.
        """
        if not finite(state.params):
            raise self.not_finite("a parameter is not finite", done)
        record = None
        if evaluating:
            self.phases.enter("evaluate", done)
            record = self.evaluate(state, done)
            if record is not None:
                self.write(record)
        owed, reason = evaluating and record is None, self.stop()
        if saving or reason:
            self.phases.enter("save", done)
            self.save(done, state, record, {"meter": self.meter.state(), "owed": owed})
        if reason and (owed or done < self.total):
            raise self.preempted(reason, done)

    def preempted(self, reason: str, done: int) -> Preempted:
        """What ends a run that was saved at a step."""
        where = f"saved at step {done} of {self.total}" if done else "nothing to save before step 1"
        return Preempted(f"{reason}: {where}; run the same command to go on")

    def due(self, every: int, done: int) -> bool:
        """Whether something with this period is due after `done` steps; at the end everything is."""
        return done == self.total or (every > 0 and done % every == 0)

    def settle(self, done: int, metrics: Any, clock: float) -> float:
        """Fetches a step's metrics, checks them, and writes a record when one is due; returns the time."""
        metrics = jax.tree.map(np.asarray, metrics)  # a seventh of what device_get costs here
        now = time.perf_counter()
        try:
            self.meter.add(metrics, now - clock)
        except NonFinite as error:
            raise self.not_finite(str(error), done) from None
        if self.due(self.every.log, done):
            self.write(self.meter.take(done))
        return now

    def not_finite(self, what: str, done: int) -> NonFinite:
        """The error that names the step, the last good checkpoint and what to do."""
        good = self.last_good()
        where = (
            f"the last good checkpoint is step {good}" if good else "no checkpoint was saved before"
        )
        remedy = "lower optimizer.learning_rate or set training.clip_norm"
        return NonFinite(f"{what} at step {done}; {where}; {remedy}")
