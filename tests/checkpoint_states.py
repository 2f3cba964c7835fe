"""A small state and a folder of checkpoints of it, for the tests of checkpoints."""

from pathlib import Path
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ablax.training.checkpoints import Checkpoints

METRIC = "validation_nats"


class Moments(NamedTuple):
    count: jax.Array
    mu: dict


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    ema: tuple
    rng: jax.Array


def make_state(seed: int = 0, rows: int = 64) -> State:
    key = jax.random.PRNGKey(seed)
    params = {
        "kernel": jax.random.normal(key, (rows, 32)),
        "bias": jnp.zeros(3, jnp.bfloat16) + seed,
    }
    moments = Moments(jnp.int32(seed), jax.tree.map(jnp.ones_like, params))
    return State(jnp.int32(seed), params, (moments, ()), (), jnp.arange(2, dtype=jnp.uint32) + seed)


def same(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs
    )


def fill(folder: Path, steps=(1, 2, 3), keep: int = 3, say=print) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep, METRIC, say=say)
    for step in steps:
        scores = {METRIC: abs(step - 1.9)}
        checkpoints.save(step, make_state(step), {"bytes": step}, {"seed": step}, scores)
    checkpoints.wait()
    return checkpoints
