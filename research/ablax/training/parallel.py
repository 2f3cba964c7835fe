"""Engines: the same pure step on all devices, as one program over a mesh or as one replica per device."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ablax.config import RequestError, knob
from ablax.training.layout import Layout, mesh_over
from ablax.training.sharding import (
    AXES,
    RULES,
    Rules,
    batch_partition,
    parse_rule,
    partitions,
)
from ablax.training.state import TrainState
from ablax.training.step import Program

AXIS = "devices"
WHOLE = dict.fromkeys(AXES, 1)


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How a step is spread over devices."""

    engine: Literal["mesh", "pmap"] = knob(
        "mesh", "mesh: one program over named axes; pmap: a replica per device.", mark="execution"
    )
    data: int = knob(
        -1, "Devices that share the rows of a batch; -1 = all that are left.", mark="execution"
    )
    fsdp: int = knob(
        1,
        "Devices that share rows, parameters and optimizer state; -1 = the rest.",
        mark="execution",
    )
    expert: int = knob(
        1, "Devices that share rows and the experts of each layer; -1 = the rest.", mark="execution"
    )
    sequence: int = knob(
        1, "Devices that share the positions of a row; -1 = the rest.", mark="execution"
    )
    tensor: int = knob(
        1, "Devices that share heads, inner widths and vocabulary; -1 = the rest.", mark="execution"
    )
    rules: tuple[str, ...] = knob(
        (),
        "Sharding rules asked before the built-in ones, REGEX=AXIS,AXIS: blocks/mine/kernel=-,fsdp,tensor.",
        mark="execution",
    )

    def __post_init__(self):
        sizes = self.sizes
        for axis, size in sizes.items():
            if size < -1 or size == 0:
                raise RequestError(f"{axis}={size} must be positive, or -1 for the rest")
        if list(sizes.values()).count(-1) > 1:
            rest = [axis for axis, size in sizes.items() if size == -1]
            raise RequestError(f"{' and '.join(rest)} are all -1; only one axis can take the rest")
        split = [axis for axis in AXES if axis != "data" and sizes[axis] != 1]
        if self.engine == "pmap" and split:
            raise RequestError(
                f"engine=pmap replicates the model and knows no {split[0]}={sizes[split[0]]}; "
                "set parallel.engine=mesh"
            )
        if self.engine == "pmap" and self.rules:
            raise RequestError("engine=pmap splits no parameter: remove parallel.rules")
        for rule in self.rules:
            parse_rule(rule)

    @property
    def sizes(self) -> dict[str, int]:
        """Axis -> devices, as configured."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def table(self) -> Rules:
        """The sharding rules of this run, first match wins."""
        return (*(parse_rule(rule) for rule in self.rules), *RULES)

    def over(self, count: int) -> dict[str, int]:
        """Axis -> devices along it, of at most `count` devices.

        Raises:
          RequestError: if they do not fit.
        """
        sizes = self.sizes
        fixed = math.prod(size for size in sizes.values() if size != -1)
        shown = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size not in (1, -1))
        if fixed > count:
            raise RequestError(
                f"parallel.{shown} but this machine has {count}; set fewer, or parallel.data=-1"
            )
        if -1 in sizes.values() and count % fixed:
            raise RequestError(
                f"parallel.{shown} does not divide the {count} devices; choose divisors of {count}"
            )
        return {axis: count // fixed if size == -1 else size for axis, size in sizes.items()}


class MeshEngine:
    """jit over a mesh: rows, positions and carry are split, parameters and what follows them by the rule table."""

    def __init__(
        self,
        program: Program,
        devices: Sequence[Any],
        sizes: Mapping[str, int] | None = None,
        rules: Rules = RULES,
    ):
        self.program, self.rules = program, rules
        self.sizes = dict(sizes) if sizes else {**WHOLE, "data": len(devices)}
        self.mesh = mesh_over(devices, self.sizes)
        self.over = Layout(self.mesh, tuple(rules))
        self._step = jax.jit(self._traced, donate_argnums=0)

    def _traced(self, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        shardings = self.shardings(state)

        def scatter(sums: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            # Each device needs the gradient of its own part only.
            return jax.lax.with_sharding_constraint(sums[0], shardings.params), *sums[1:]

        with self.over():
            after, metrics = self.program.step(state, batch, scatter)
        # Without this XLA may choose another layout for the next state, and the step would be compiled twice.
        return jax.lax.with_sharding_constraint(after, shardings), metrics

    def shardings(self, state: TrainState) -> TrainState:
        """A tree of shardings like the state (which may be abstract)."""
        specs = partitions(state, self.sizes, self.rules)
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec),
            specs,
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )

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

    def batch_sharding(self, shape: Sequence[int]) -> NamedSharding:
        """Of one array of a batch, by its global shape (of the rows of one process: its axis B does not matter)."""
        length = self.program.spec["tokens"].shape[1]
        return NamedSharding(self.mesh, batch_partition(shape, length))

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows of a batch as global arrays."""
        count = self.program.spec["tokens"].shape[0]
        return {
            # Said, because a process holds whole rows even where `sequence` splits them between processes.
            name: jax.make_array_from_process_local_data(
                self.batch_sharding(rows.shape), rows, (count, *rows.shape[1:])
            )
            for name, rows in batch.items()
        }

    def lower(self, rng: jax.Array, hyper: Any) -> Any:
        """The step lowered for its devices, which need not exist here; `.compile()` makes XLA's program of it."""
        batch = {
            name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=self.batch_sharding(s.shape))
            for name, s in self.program.spec.items()
        }
        return self._step.lower(self.template(rng, hyper), batch)

    def step(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, Any]:
        """One training step; the given state's buffers are reused."""
        # On one device the call itself places the arrays, for a fraction of what `place` costs on the host.
        return self._step(state, dict(batch) if self.mesh.size == 1 else self.place(batch))


class PmapEngine:
    """One replica per device; gradients and sums are added with a psum between the two halves of the step.

    `pmap` takes and gives each process its own rows; a state that several processes share is made of global arrays
    outside of the step, so that it is saved, restored and evaluated like a mesh's.
    """

    def __init__(self, program: Program, devices: Sequence[Any]):
        self.program = program
        self.devices, self.sizes = devices, {**WHOLE, "data": len(devices)}
        self.mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
        # For programs beside the step.
        named = self.mesh.devices.reshape([self.sizes[axis] for axis in AXES])
        self.over = Layout(Mesh(named, AXES, axis_types=(AxisType.Auto,) * len(AXES)), ())
        names = [field.name for field in dataclasses.fields(TrainState)]
        axes: dict[str, Any] = {name: 0 if name == "carry" else None for name in names}
        state_axes = TrainState(**axes)
        specs: dict[str, Any] = {
            name: PartitionSpec(AXIS) if name == "carry" else PartitionSpec() for name in names
        }
        self._specs = TrainState(**specs)
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
        places = jax.tree.map(lambda leaf: leaf.sharding, self.template(rng, hyper))
        return jax.jit(self.program.init, out_shardings=places)(rng, hyper)

    def template(self, rng: jax.Array, hyper: Any) -> TrainState:
        """Shapes, dtypes and shardings of a state as a step leaves it: a copy on each device, the carry by rows.

        From any other one the first step would be compiled for that one alone.
        """
        shapes = jax.eval_shape(self.program.init, rng, hyper)

        def spread(tree: Any, spec: PartitionSpec) -> Any:
            place = NamedSharding(self.mesh, spec)
            return jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
            )

        whole = spread(shapes, PartitionSpec())
        return dataclasses.replace(whole, carry=spread(shapes.carry, PartitionSpec(AXIS)))

    def step(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, Any]:
        """One training step."""
        # Both conversions return what they are given when one process has all devices.
        state = multihost_utils.global_array_to_host_local_array(state, self.mesh, self._specs)
        carry = self._split(state.carry)
        after, metrics = self._step(dataclasses.replace(state, carry=carry), self._split(batch))
        joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), after.carry)
        after = dataclasses.replace(after, carry=joined)
        after = multihost_utils.host_local_array_to_global_array(after, self.mesh, self._specs)
        return after, metrics

    def _split(self, tree: Any) -> Any:
        count = len(self.mesh.local_devices)
        return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), tree)


def layout_of(config: ParallelConfig, devices: Sequence[Any]) -> Layout:
    """How a model without an optimizer lies on the devices that a configuration asks for, of those given.

    Raises:
      RequestError: if the devices do not fit, or each would hold a replica of its own.
    """
    if config.engine != "mesh":
        raise RequestError(f"engine={config.engine} trains and lays out nothing; set engine=mesh")
    sizes = config.over(len(devices))
    mesh = mesh_over(list(devices)[: math.prod(sizes.values())], sizes)
    return Layout(mesh, tuple(config.table))


def build(
    config: ParallelConfig, program: Program, devices: Sequence[Any]
) -> MeshEngine | PmapEngine:
    """The engine of a configuration over the devices that it asks for, of those given.

    Raises:
      RequestError: if the devices do not fit.
    """
    sizes = config.over(len(devices))
    devices = list(devices)[: math.prod(sizes.values())]
    if config.engine == "pmap":
        return PmapEngine(program, devices)
    return MeshEngine(program, devices, sizes, config.table)
