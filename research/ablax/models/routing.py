"""Which experts a token goes to, and what keeps them evenly used: pure functions of a router's logits.

A row of a batch is a group: balance, capacity and everything else here is counted within it. So no token depends on
another row, and a batch in parts, over micro-batches or devices, gives the gradient of the whole.
GShard (arXiv:2006.16668, section 2.2) and DeepSeek-V3 (arXiv:2412.19437, equations 17 to 20) balance within groups
too; a balance over the whole batch leaves experts more room to specialise (arXiv:2501.11873).
"""

import jax
import jax.numpy as jnp
from flax import struct

from ablax.shapes import Array, Bool, Float, Int, typed


class Routing(struct.PyTreeNode):
    """What a router decided for each token; k is the number of experts per token.

    Attributes:
      chosen: experts, the most probable first.
      weights: of their outputs.
      probabilities: of all experts.
      log_normaliser: logsumexp of the logits.
    """

    chosen: Int[Array, "B T k"]
    weights: Float[Array, "B T k"]
    probabilities: Float[Array, "B T E"]
    log_normaliser: Float[Array, "B T"]


@typed
def route(logits: Float[Array, "B T E"], count: int, normalise: bool) -> Routing:
    """The `count` most probable experts of each token.

    Args:
      normalise: weights are the softmax over the chosen logits (Mixtral, arXiv:2401.04088, section 2.1), so that they
        sum to one; otherwise they are the probabilities among all experts (Switch, arXiv:2101.03961, equation 2).
    """
    probabilities = jax.nn.softmax(logits)
    top, chosen = jax.lax.top_k(logits, count)
    weights = jnp.take_along_axis(probabilities, chosen, axis=-1)
    if normalise:
        weights = jax.nn.softmax(top)
    return Routing(chosen, weights, probabilities, jax.nn.logsumexp(logits, axis=-1))


@typed
def load(chosen: Int[Array, "B T k"], counted: Bool[Array, "B T"], experts: int) -> Array:
    """Share of a row's choices that fell on each expert: float32 [B E]; counted tokens only."""
    hot = jax.nn.one_hot(chosen, experts) * counted[..., None, None]
    return hot.sum((1, 2)) / jnp.maximum(counted.sum(1, keepdims=True) * chosen.shape[-1], 1)


@typed
def balance(routing: Routing, counted: Bool[Array, "B T"]) -> Float[Array, "B"]:
    """E x sum of (share of choices x mean probability) over experts, within each row: 1 where all are used alike.

    Switch Transformer, arXiv:2101.03961, equation 4 without its factor; with k choices a token, their share of all.
    """
    experts = routing.probabilities.shape[-1]
    shares = load(routing.chosen, counted, experts)
    return experts * (shares * _mean(routing.probabilities, counted)).sum(-1)


@typed
def z(routing: Routing, counted: Bool[Array, "B T"]) -> Float[Array, "B"]:
    """Mean square of the logits' logsumexp in each row (ST-MoE, arXiv:2202.08906, equation 5)."""
    return _mean(routing.log_normaliser[..., None] ** 2, counted)[:, 0]


def _mean(values: Array, counted: Array) -> Array:
    """[B T C] -> [B C] over counted tokens."""
    total = (values * counted[..., None]).sum(1)
    return total / jnp.maximum(counted.sum(1, keepdims=True), 1)


@typed
def places(
    chosen: Int[Array, "B M"], counted: Bool[Array, "B M"], experts: int
) -> tuple[Int[Array, "B M"], Int[Array, "B E"]]:
    """How many earlier choices of the row each choice finds at its expert, and how many each expert has in the end.

    Args:
      chosen: in the order in which they are served. Tokens one after the other, each with all its choices, is causal;
        all first choices before all second ones, as in GShard, is not.
      counted: others take no place; what is returned for them means nothing.
    """
    hot = jax.nn.one_hot(chosen, experts, dtype=jnp.int32) * counted[..., None]
    before = jnp.cumsum(hot, axis=1) - hot
    return jnp.take_along_axis(before, chosen[..., None], axis=-1)[..., 0], hot.sum(1)
