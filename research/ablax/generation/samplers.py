"""Samplers: pure functions of next-token logits, the same inside and outside a compiled program.

Order and meaning are those of Hugging Face transformers: repetition penalty, temperature, top-k,
top-p, min-p.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ablax.config import RequestError, check_seed, knob
from ablax.shapes import Array, Bool, Float, Int, typed


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits."""

    temperature: float = knob(1.0, "Divides the logits; 0 always takes the likeliest token.")
    top_k: int = knob(0, "Keeps the k likeliest tokens; 0 keeps all.")
    top_p: float = knob(
        1.0, "Keeps the fewest tokens whose probability reaches p (Holtzman et al. 2020)."
    )
    min_p: float = knob(
        0.0, "Drops tokens below this share of the likeliest token's probability (Nguyen 2024)."
    )
    repetition_penalty: float = knob(
        1.0, "Pushes tokens seen in the prompt or the text down; 1 is off (Keskar et al. 2019)."
    )

    def __post_init__(self):
        def require(name: str, good: bool, expected: str):
            if not good:
                raise RequestError(f"{name}={getattr(self, name)} must be {expected}")

        temperature, penalty = self.temperature, self.repetition_penalty
        require("temperature", 0 <= temperature < math.inf, "a number >= 0 (0 is greedy)")
        require("top_k", self.top_k >= 0, "a whole number >= 0 (0 keeps all tokens)")
        require("top_p", 0 < self.top_p <= 1, "in (0, 1] (1 keeps all tokens)")
        require("min_p", 0 <= self.min_p <= 1, "in [0, 1] (0 keeps all tokens)")
        require("repetition_penalty", 0 < penalty < math.inf, "a number > 0 (1 is off)")

    def controls(self) -> "Controls":
        """The numbers as arrays; settings that switch on the same steps share one program."""
        on = {
            "repetition_penalty": self.repetition_penalty != 1,
            "greedy": self.temperature == 0,
            "temperature": self.temperature not in (0, 1),
            "top_k": self.top_k != 0,
            "top_p": self.top_p != 1,
            "min_p": self.min_p != 0,
        }
        return Controls(
            temperature=np.float32(self.temperature),
            top_k=np.int32(min(self.top_k, 2**31 - 1)),
            top_p=np.float32(self.top_p),
            min_p=np.float32(self.min_p),
            repetition_penalty=np.float32(self.repetition_penalty),
            steps=tuple(name for name, active in on.items() if active),
        )


@struct.dataclass
class Controls:
    """`Sampling` for compiled code: scalars (or one per row, [B]), and which steps are in the
    program at all.
    """

    temperature: Array | np.float32
    top_k: Array | np.int32
    top_p: Array | np.float32
    min_p: Array | np.float32
    repetition_penalty: Array | np.float32
    steps: tuple[str, ...] = struct.field(pytree_node=False)


def _column(value: Array | np.ndarray | np.generic | float, like: Array) -> Array:
    """A scalar or [B] as [B 1]."""
    return jnp.broadcast_to(jnp.asarray(value), like.shape[:1])[:, None]


def _keep(logits: Array, weights: Array, need: Array) -> Array:
    """Keeps the largest logits up to the one with which their weights [B V] reach `need` [B 1],
    ties included.

    The threshold is found by bisection over the floats' bits, in 32 passes over the logits: exact
    like a sort, which on a CPU takes many times longer.
    """
    bits = jax.lax.bitcast_convert_type(logits + 0.0, jnp.int32)  # + 0.0: no negative zero
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats

    def halve(_, bounds):
        low, high = bounds  # what is at least `low` is enough, what is at least `high` is not
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        enough = jnp.where(order >= middle, weights, 0).sum(axis=-1, keepdims=True) >= need
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    bounds = order.min(axis=-1, keepdims=True), order.max(axis=-1, keepdims=True) + 1
    low, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return jnp.where(order >= low, logits, -jnp.inf)


@typed
def repetition_penalty(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty
) -> Float[Array, "B V"]:
    """Divides positive logits of seen tokens by the penalty and multiplies negative ones (CTRL,
    section 4.1).

    Args:
      seen: tokens that occur in the prompt or in what was generated.
      penalty: > 1 discourages, < 1 encourages; scalar or [B].
    """
    penalty = _column(penalty, logits)
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


@typed
def temperature(logits: Float[Array, "B V"], value) -> Float[Array, "B V"]:
    """Divides the logits by the temperature (> 0); scalar or [B]."""
    return logits / _column(value, logits)


@typed
def top_k(logits: Float[Array, "B V"], k) -> Float[Array, "B V"]:
    """Keeps the k largest logits and those equal to the k-th (Fan et al. 2018); scalar or [B]."""
    return _keep(logits, jnp.ones_like(logits), _column(k, logits))


@typed
def top_p(logits: Float[Array, "B V"], p) -> Float[Array, "B V"]:
    """Keeps the likeliest tokens up to the one with which their probability reaches p, and at least
    one.

    Nucleus sampling (Holtzman et al. 2020, section 3.1); scalar or [B]. Tokens equal to the last
    kept one stay.
    """
    return _keep(logits, jax.nn.softmax(logits, axis=-1), _column(p, logits))


@typed
def min_p(logits: Float[Array, "B V"], share) -> Float[Array, "B V"]:
    """Drops tokens whose probability is below `share` of the largest one (Nguyen et al. 2024);
    scalar or [B].
    """
    floor = logits.max(axis=-1, keepdims=True) + jnp.log(_column(share, logits))
    return jnp.where(logits < floor, -jnp.inf, logits)


@typed
def shape_logits(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"] | None, controls: Controls
) -> Float[Array, "B V"]:
    """Applies the steps that are switched on, in transformers' order."""
    steps = controls.steps
    if "repetition_penalty" in steps:
        assert seen is not None
        logits = repetition_penalty(logits, seen, controls.repetition_penalty)
    if "greedy" in steps:  # none of the filters ever drops the likeliest token
        return logits
    if "temperature" in steps:
        logits = temperature(logits, controls.temperature)
    if "top_k" in steps:
        logits = top_k(logits, controls.top_k)
    if "top_p" in steps:
        logits = top_p(logits, controls.top_p)
    if "min_p" in steps:
        logits = min_p(logits, controls.min_p)
    return logits


@typed
def choose(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"] | None, keys: Array, controls: Controls
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Chooses one token per row.

    Args:
      logits: float32, straight from the model.
      seen: tokens that the repetition penalty applies to; None where it is off.
      keys: one random key per row [B], so that a row's draw does not depend on its neighbours.

    Returns:
      The tokens, and their log-probabilities in nats under the model itself (before any step
      above).
    """
    shaped = shape_logits(logits, seen, controls)
    if "greedy" in controls.steps:
        tokens = shaped.argmax(axis=-1)
    else:
        tokens = jax.vmap(jax.random.categorical)(keys, shaped)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)


def row_keys(seed: int, prompts: np.ndarray, samples: np.ndarray) -> Array:
    """Random keys [B] for rows, each from (seed, prompt's index, sample's index) alone.

    Raises:
      RequestError: if the seed is not in [0, 2**32).
    """
    check_seed(seed)
    key = jax.random.key(np.uint32(seed))
    fold = jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(key, p), s))
    return fold(np.asarray(prompts, np.uint32), np.asarray(samples, np.uint32))
