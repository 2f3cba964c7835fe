"""Engines: the same pure step on every local device, as one sharded program or as one replica per device."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ablax.config import RequestError, knob
from ablax.training.masks import parameter_path
from ablax.training.state import TrainState
from ablax.training.step import Program

Rules = Sequence[tuple[str, PartitionSpec]]

# First match wins; a parameter that no rule covers is an error. Paths are joined by "/".
RULES: Rules = ((r".*", PartitionSpec()),)
AXIS = "devices"


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How a step is spread over devices."""

    engine: Literal["mesh", "pmap"] = knob(
        "mesh", "mesh: one program over named axes; pmap: a replica per device.", mark="execution"
    )
    data: int = knob(
        -1, "Devices that share the rows of a batch; -1 takes all of them.", mark="execution"
    )

    def __post_init__(self):
        if self.data < -1 or self.data == 0:
            raise RequestError(f"data={self.data} must be positive, or -1 for all devices")

    def devices(self) -> list[Any]:
        """The devices of this run.

        Raises:
          RequestError: if there are fewer than asked for.
        """
        found = jax.devices()
        if self.data > len(found):
            raise RequestError(
                f"parallel.data={self.data} but there are {len(found)} devices ({found[0].platform});"
                f" set parallel.data={len(found)} or -1"
            )
        return found if self.data == -1 else found[: self.data]


def spec_of(path: str, rules: Rules = RULES) -> PartitionSpec:
    """The partition of a parameter by the first rule that matches its path.

    Raises:
      KeyError: if no rule covers it.
    """
    for pattern, spec in rules:
        if re.fullmatch(pattern, path):
            return spec
    raise KeyError(f"no sharding rule covers parameter {path!r}; add a rule to RULES")


class MeshEngine:
    """jit over a mesh with a `data` axis: rows and carry are sharded, parameters follow the rule table."""

    def __init__(self, program: Program, devices: Sequence[Any]):
        self.program = program
        self.mesh = Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))
        self._step = jax.jit(program.step, donate_argnums=0)

    def shardings(self, state: TrainState) -> TrainState:
        """A tree of shardings like the state (which may be abstract)."""
        rows = NamedSharding(self.mesh, PartitionSpec("data"))
        tree = jax.tree_util.tree_map_with_path(
            lambda path, _: NamedSharding(self.mesh, spec_of(parameter_path(path))), state
        )
        return dataclasses.replace(tree, carry=jax.tree.map(lambda _: rows, state.carry))

    def init(self, rng: jax.Array, hyper: Any) -> TrainState:
        """A fresh state, born on its devices."""
        shardings = self.shardings(jax.eval_shape(self.program.init, rng, hyper))
        return jax.jit(self.program.init, out_shardings=shardings)(rng, hyper)

    def template(self, rng: jax.Array, hyper: Any) -> TrainState:
        """Shapes, dtypes and shardings of a state."""
        shapes = jax.eval_shape(self.program.init, rng, hyper)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.shardings(shapes),
        )

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows of a batch as global arrays."""
        sharding = NamedSharding(self.mesh, PartitionSpec("data"))
        return {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in batch.items()
        }

    def step(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, Any]:
        """One training step; the given state's buffers are reused."""
        # On one device the call itself places the arrays, for a fraction of what `place` costs on the host.
        return self._step(state, dict(batch) if self.mesh.size == 1 else self.place(batch))


class PmapEngine:
    """One replica per device; gradients and sums are added with a psum between the two halves of the step."""

    def __init__(self, program: Program, devices: Sequence[Any]):
        self.program = program
        self.devices = devices
        fields = dataclasses.fields(TrainState)
        axes: dict[str, Any] = {f.name: 0 if f.name == "carry" else None for f in fields}
        state_axes = TrainState(**axes)
        self._step = jax.pmap(
            self._replica,
            axis_name=AXIS,
            in_axes=(state_axes, 0),
            out_axes=(state_axes, None),
            devices=devices,
        )

    def _replica(self, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        # Each replica drops its own units: the same key everywhere would repeat one mask per device.
        key = jax.random.wrap_key_data(state.rng, impl="threefry2x32")
        own = jax.random.key_data(jax.random.fold_in(key, jax.lax.axis_index(AXIS)))
        rng = state.rng
        if len(self.devices) > 1:
            state = dataclasses.replace(state, rng=own)
        after, metrics = self.program.step(state, batch, lambda tree: jax.lax.psum(tree, AXIS))
        return dataclasses.replace(after, rng=rng), metrics

    def init(self, rng: jax.Array, hyper: Any) -> TrainState:
        """A fresh state."""
        return jax.jit(self.program.init)(rng, hyper)

    def template(self, rng: jax.Array, hyper: Any) -> TrainState:
        """Shapes and dtypes of a state on one device; its carry is spread by rows, as a step leaves it."""
        shapes = jax.eval_shape(self.program.init, rng, hyper)
        mesh = Mesh(np.asarray(self.devices), (AXIS,), axis_types=(AxisType.Auto,))
        rows = NamedSharding(mesh, PartitionSpec(AXIS))
        carry = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), shapes.carry
        )
        return dataclasses.replace(shapes, carry=carry)

    def step(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, Any]:
        """One training step."""
        carry = self._split(state.carry)
        after, metrics = self._step(dataclasses.replace(state, carry=carry), self._split(batch))
        joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), after.carry)
        return dataclasses.replace(after, carry=joined), metrics

    def _split(self, tree: Any) -> Any:
        count = len(self.devices)
        return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), tree)


ENGINES: dict[str, Callable[[Program, Sequence[Any]], Any]] = {
    "mesh": MeshEngine,
    "pmap": PmapEngine,
}
