"""The loop: draw, step, and in this order evaluate, save."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ablax.run import Paused, Preempted
from ablax.training.every import Every
from ablax.training.guard import why_refused
from ablax.training.meter import Meter
from ablax.training.phases import Phases
from ablax.training.recovery import Recovery, Refused, first_not_finite
from ablax.training.seat import Seat, Steps, Wish
from ablax.training.signals import Stop, Stopped
from ablax.training.state import TrainState, without_hyper


@dataclasses.dataclass(eq=False)
class Loop:
    """One verb per object; their order is law.

    Attributes:
      seat: holds the state; who drives the loop makes its steps there.
      batches: start step -> iterator of batches.
      every: when to log, evaluate and save, and when to end.
      meter: adds up the steps' sums.
      write: takes a record.
      evaluate: (state, step) -> record of the evaluation, or None if the wish to stop broke it off.
      save: (step, state, record of the evaluation or None, what `run` and the meter need to go on, whether the run
        ends with it).
      stop: whether somebody wants the run to end now.
      recovery: decides what becomes of a refused step.
      seen: takes each step and its batch before it is made.
      phases: where the run is.
    """

    seat: Seat
    batches: Callable[[int], Any]
    every: Every
    meter: Meter
    write: Callable[[dict[str, Any]], None]
    evaluate: Callable[[TrainState, int], dict[str, Any] | None]
    save: Callable[[int, TrainState, Mapping[str, Any] | None, Mapping[str, Any], bool], None]
    stop: Stop
    recovery: Recovery
    seen: Callable[[int, Mapping[str, np.ndarray]], None]
    phases: Phases = dataclasses.field(default_factory=Phases)
    first: int = dataclasses.field(init=False)
    saved: int = dataclasses.field(init=False)
    clock: float = dataclasses.field(init=False)

    def run(self, state: TrainState, owed: bool = False) -> Steps:
        """From the state's step to the last; returns the state (see `seat.drive`).

        Args:
          state: where to begin.
          owed: whether the evaluation of the state's step was broken off when it was saved.

        Raises:
          Diverged, Rewind: see `Recovery.decide`; a state that is not finite is never saved.
          Preempted: after the state was saved, if `stop` asked for it.
          Paused: after it was evaluated and saved at the step to which it was to go.
          Stopped: if it asked for it before the first step was made: there is nothing new to save.
        """
        self.seat.state, start = state, int(state.step)
        self.first = self.saved = start
        if owed:
            self.conclude(start, evaluating=True, saving=self.every.saves(start))
        if start == self.every.until:  # saved there, and ended before anybody knew
            raise self.paused(start)
        while True:
            try:
                yield from self.advance(int(self.seat.state.step))
                return self.seat.state
            except Refused as refused:
                self.phases.enter("step", refused.step)
                metrics = yield from self.recovery.repeat(refused, self.seat, self.batches)
                self.count(refused.step, metrics)
                evaluating, saving = self.every.dues(refused.step)
                if evaluating or saving:
                    self.conclude(refused.step, evaluating, saving)

    def advance(self, start: int) -> Steps:
        """Steps from `start` updates to the last; raises Refused when the guard did not apply one."""
        pending, batches = None, self.batches(start)
        self.clock = time.perf_counter()
        for done in range(start + 1, self.every.total + 1):
            self.phases.enter("data", done)
            try:
                with self.stop.breakable(True):
                    batch = next(batches)
            except Stopped as reason:
                if pending:
                    self.settle(*pending)
                if self.saved < done - 1:
                    self.conclude(done - 1, evaluating=False, saving=True)
                raise self.preempted(str(reason), done - 1) from None
            self.seen(done, batch)
            first = done == self.first + 1
            self.phases.enter("compile" if first else "step", done)
            metrics = yield Wish(batch, first)
            # Fetched one step late: the device works on this step while the host reads the one before, and there
            # are never more than two programs in flight.
            if pending:
                self.settle(*pending)
            pending = (done, metrics)
            evaluating, saving = self.every.dues(done)
            if not (evaluating or saving or self.stop()):
                continue
            self.settle(*pending)
            pending = None
            self.conclude(done, evaluating, saving)
            self.clock = time.perf_counter()
        self.phases.enter("end", self.every.total)

    def conclude(self, done: int, evaluating: bool, saving: bool) -> None:
        """Evaluates and saves after a step, and ends the run if somebody wants it.

        An evaluation that is broken off is owed: the checkpoint says so, and the next start makes up for it.
        """
        state = self.seat.state
        if where := first_not_finite(without_hyper(state)):
            self.recovery.decide(done, f"{where} is not finite", again=True, poisoned=True)
        record = None
        if evaluating:
            self.phases.enter("evaluate", done)
            record = self.evaluate(state, done)
            if record is not None:
                self.write(record)
        owed, reason = evaluating and record is None, self.stop()
        if saving or reason:
            self.phases.enter("save", done)
            going_on = {"meter": self.meter.state(), "owed": owed, "guard": self.recovery.state()}
            ending = bool(reason) or done in (self.every.total, self.every.until)
            self.save(done, state, record, going_on, ending)
            self.saved = done
        if reason and (owed or done < self.every.total):
            raise self.preempted(reason, done)
        if done == self.every.until:
            raise self.paused(done)

    def paused(self, done: int) -> Paused:
        """What ends a run that is to go on another time."""
        return Paused(f"paused at step {done} of {self.every.total}")

    def preempted(self, reason: str, done: int) -> Preempted:
        """What ends a run that was saved at a step."""
        where = (
            f"saved at step {done} of {self.every.total}"
            if done
            else "nothing to save before step 1"
        )
        return Preempted(f"{reason}: {where}; run the same command to go on")

    def settle(self, done: int, metrics: Any) -> None:
        """Fetches a step's metrics, and writes a record when one is due; raises Refused if it was not applied."""
        if why := why_refused(metrics):
            raise Refused(done, why)
        self.count(done, metrics)

    def count(self, done: int, metrics: Any) -> None:
        """Adds a step to the meter; `metrics` is None if it was left out."""
        now = time.perf_counter()
        self.meter.add(metrics, now - self.clock)
        self.clock = now
        if self.every.logs(done):
            self.write(self.meter.take(done))
