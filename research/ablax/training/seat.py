"""A seat: where the state of a run lies between its steps, and who makes these.

A loop is a generator of wishes. So a run that has the devices to itself and runs that share a program are one loop.
"""

from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from ablax.training.signals import Stop
from ablax.training.state import TrainState


class Wish(NamedTuple):
    """A step that a run wants made, on the state in its seat.

    Attributes:
      batch: of the step.
      first: whether its program may have to be compiled.
    """

    batch: Mapping[str, np.ndarray]
    first: bool = False


Steps = Generator[Wish, Any, Any]
"""Yields wishes, is sent the metrics of each step, returns what the run returns."""


class Seat(Protocol):
    """Where the state is; setting it replaces it."""

    @property
    def state(self) -> TrainState:
        """The state after the last step."""
        ...

    @state.setter
    def state(self, state: TrainState) -> None: ...


class Alone:
    """The seat of a run that has an engine to itself.

    Args:
      engine: `step(state, batch) -> (state, metrics)`.
      stop: may break off the compilation.
    """

    state: TrainState

    def __init__(self, engine: Any, stop: Stop):
        self._engine, self._stop = engine, stop

    def step(self, wish: Wish) -> Any:
        """Makes a step and returns its metrics."""
        with self._stop.breakable(wish.first):
            self.state, metrics = self._engine.step(self.state, wish.batch)
        return metrics


def drive(run: Steps, step: Callable[[Wish], Any]) -> Any:
    """Makes the steps of a run until it ends, and returns what it returns; an error of a step is raised inside it."""
    try:
        wish = next(run)
        while True:
            try:
                metrics = step(wish)
            except BaseException as error:
                wish = run.throw(error)
            else:
                wish = run.send(metrics)
    except StopIteration as end:
        return end.value
