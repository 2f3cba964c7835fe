"""Members: the states of several runs as one, and the step of all of them as one program.

A member's arithmetic is that of its own run: `vmap` of the pure step over a leading axis. A place without a member that
wants a step is frozen by the guard, as after a refused step, so that what it computes changes nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ablax.training.guard import NOT_FINITE
from ablax.training.seat import Steps, Wish
from ablax.training.state import TrainState
from ablax.training.step import Program

AXIS = "members"


class Members:
    """The engine of several runs that share a program. Members lie side by side on the devices.

    Args:
      program: of all members.
      template: shapes, dtypes and shardings of one member's state as its run wants it.
      count: of members.
      devices: that share them; the axis is filled up to a multiple with places that stay frozen.
    """

    def __init__(self, program: Program, template: TrainState, count: int, devices: Sequence[Any]):
        devices = list(devices)[:count]
        self.places = -(-count // len(devices)) * len(devices)
        mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self._sharding = NamedSharding(mesh, PartitionSpec(AXIS))
        self._template, self._alone = template, len(devices) == 1
        shapes = jax.tree.map(lambda x: (self.places, *x.shape), template)

        def empty() -> TrainState:
            state = jax.tree.map(
                lambda x, shape: jnp.zeros(shape, x.dtype),
                template,
                shapes,
                is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct),
            )
            refused = jnp.full_like(state.guard.refused, NOT_FINITE)
            return _with_refused(state, refused)

        def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
            after, metrics = jax.vmap(program.step)(state, batch)
            return self._laid(after), metrics

        def put(state: TrainState, index: Any, one: TrainState) -> TrainState:
            return self._laid(jax.tree.map(lambda all, x: all.at[index].set(x), state, one))

        def freeze(state: TrainState, index: Any) -> TrainState:
            refused = state.guard.refused.at[index].set(NOT_FINITE)
            return self._laid(_with_refused(state, refused))

        whole = NamedSharding(mesh, PartitionSpec())
        self._step = jax.jit(step, donate_argnums=0)
        self._put = jax.jit(put, donate_argnums=0)
        self._freeze = jax.jit(freeze, donate_argnums=0)
        self._take = jax.jit(
            lambda state, index: jax.tree.map(lambda all: all[index], state), out_shardings=whole
        )
        self._state = jax.jit(empty, out_shardings=self._sharding)()

    def _laid(self, state: TrainState) -> TrainState:
        return jax.lax.with_sharding_constraint(state, self._sharding)

    def take(self, index: int) -> TrainState:
        """A copy of one member's state, where its own run wants it."""
        found = self._take(self._state, index)
        return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), found, self._template)

    def put(self, index: int, state: TrainState) -> None:
        """Gives a member a state, which may take steps and is used up, as by a step of a run alone."""
        whole = NamedSharding(self._sharding.mesh, PartitionSpec())
        self._state = self._put(self._state, index, jax.device_put(state, whole))
        # Whoever began the run still names it, to the end: a second copy of every member.
        for leaf in jax.tree.leaves(state):
            leaf.delete()

    def freeze(self, index: int) -> None:
        """Lets a member take no more steps."""
        self._state = self._freeze(self._state, index)

    def step(self, wishes: Mapping[int, Wish]) -> dict[int, "Share"]:
        """One step of the members that want one: of all that are not frozen.

        Returns:
          By member, the metrics of its own step.
        """
        some = next(iter(wishes.values())).batch
        batches = [wishes[i].batch if i in wishes else some for i in range(self.places)]
        batch = {name: np.stack([rows[name] for rows in batches]) for name in some}
        if not self._alone:
            batch = jax.device_put(batch, self._sharding)
        self._state, metrics = self._step(self._state, batch)
        made = Made(metrics, self.places)
        return {index: Share(made, index) for index in wishes}


def _with_refused(state: TrainState, refused: jax.Array) -> TrainState:
    guard = dataclasses.replace(state.guard, refused=refused)
    return dataclasses.replace(state, guard=guard)


class Made:
    """The metrics of a step of all members, fetched once when the first asks for its own."""

    def __init__(self, metrics: Any, places: int):
        self._metrics, self._places = metrics, places

    @functools.cached_property
    def by_member(self) -> list[Mapping[str, Any]]:
        """As a run alone would have them; waits for the step."""
        leaves, tree = jax.tree.flatten(jax.device_get(self._metrics))
        return [tree.unflatten([leaf[i] for leaf in leaves]) for i in range(self._places)]


class Share(Mapping[str, Any]):
    """One member's metrics of a step; asking for them waits for the step."""

    def __init__(self, made: Made, index: int):
        self._made, self._index = made, index

    def __getitem__(self, name: str) -> Any:
        return self._made.by_member[self._index][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made.by_member[self._index])

    def __len__(self) -> int:
        return len(self._made.by_member[self._index])


class Member:
    """The seat of a run that shares its program; see `seat.Seat`."""

    def __init__(self, members: Members, index: int):
        self._members, self._index = members, index

    @property
    def state(self) -> TrainState:
        """A copy of it."""
        return self._members.take(self._index)

    @state.setter
    def state(self, state: TrainState) -> None:
        self._members.put(self._index, state)


def drive_all(
    runs: Sequence[Steps], members: Members, breakable: Callable[[bool], Any]
) -> list[Any]:
    """Makes the steps of all runs together until each has ended.

    A run that fails ends alone. They need not be at the same step: one repeats a step or starts over while the others
    go on.

    Args:
      breakable: of the wish to stop (see `Stop`).

    Returns:
      For each run, what it returned, or the exception that ended it.

    Raises:
      BaseException: that no run may keep for itself (Ctrl-C), or of the step of all; each run has seen it.
    """
    ends: list[Any] = [None] * len(runs)
    answers: dict[int, Any] = dict.fromkeys(range(len(runs)))
    while True:
        wishes: dict[int, Wish] = {}
        for index, metrics in answers.items():
            try:
                wishes[index] = runs[index].send(metrics)
            except StopIteration as end:
                ends[index] = end.value
            except Exception as error:
                ends[index] = error
            except BaseException as error:
                _end_all(runs, error)
                raise
            if index not in wishes:
                members.freeze(index)
        if not wishes:
            return ends
        try:
            with breakable(any(wish.first for wish in wishes.values())):
                answers = members.step(wishes)
        except BaseException as error:
            _end_all(runs, error)
            raise


def _end_all(runs: Sequence[Steps], error: BaseException) -> None:
    """Raises the error in each run that has not ended, so that it writes down what ended it."""
    for run in runs:
        try:
            run.throw(error)
        except BaseException:
            continue
