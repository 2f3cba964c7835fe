"""The state of a run: one tree, the same in every engine, and all that a resume needs."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ablax.shapes import Array, Int, UInt32
from ablax.training.guard import GuardState


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      step: int32 [] number of updates done.
      params: the model's parameters, float32.
      opt_state: the optimizer's state.
      ema: exponential moving average of the parameters, or () without one.
      carry: a recurrent model's state between the windows of a stream, leading axis B; () otherwise.
      hyper: the traced knobs as float32 scalars.
      rng: uint32 [2] key data; the key of a step is fold_in(rng, step).
      guard: whether the last step was refused.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    ema: Any
    carry: Any
    hyper: Any
    rng: UInt32[Array, "2"]
    guard: GuardState


def without_hyper(state: TrainState) -> TrainState:
    """What a checkpoint holds: traced knobs come from the configuration, so that a fork may change them."""
    return dataclasses.replace(state, hyper=())


def key_of(state: TrainState) -> jax.Array:
    """The random key of the step that comes next."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.rng, impl="threefry2x32"), state.step)


def scalars(traced: Any) -> Any:
    """Nested dicts of traced knobs as float32 arrays."""
    return jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), traced)
