"""What biases on attention logits depend on: ALiBi's slopes, T5's buckets of distances."""

import math

import jax.numpy as jnp

from ablax.shapes import Array, Int, typed


def alibi_slopes(num_heads: int) -> list[float]:
    """One slope a head: geometric from 2^(-8/N) down (arXiv:2108.12409, section 3).

    When N is not a power of two: the slopes of the next lower power, then every other one of the
    next higher power.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    extra = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * (num_heads - power), 2)]
    return slopes + extra


@typed
def t5_buckets(
    relative: Int[Array, "*shape"], *, causal: bool, num_buckets: int, max_distance: int
) -> Int[Array, "*shape"]:
    """Bucket of a relative position (key minus query): exact when near, logarithmic up to `max_distance`.

    Without `causal`, half of the buckets are for keys after the query (arXiv:1910.10683, section
    2.1).
    """
    buckets = jnp.zeros_like(relative)
    if causal:
        distance = jnp.maximum(-relative, 0)
    else:
        num_buckets //= 2
        buckets = buckets + num_buckets * (relative > 0)
        distance = jnp.abs(relative)
    exact = num_buckets // 2
    growth = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
    far = exact + (growth / math.log(max_distance / exact) * (num_buckets - exact)).astype(
        jnp.int32
    )
    far = jnp.minimum(far, num_buckets - 1)
    return buckets + jnp.where(distance < exact, distance, far)
