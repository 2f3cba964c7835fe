"""Reading: what a model gives the tokens of a prompt itself, each given those before it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ablax import placement
from ablax.generation.decoders import Decoder, Prompts
from ablax.generation.samplers import Chosen, measured


@functools.partial(jax.jit, static_argnames=("module", "over", "alternatives"))
def read_prompts(
    module: nn.Module,
    params: Any,
    hyper: Mapping[str, Any],
    prompts: Prompts,
    over: placement.Over,
    *,
    alternatives: int,
) -> Chosen:
    """`measured` for the token behind each column of the prompts' contexts [B C]."""
    following = jnp.concatenate([prompts.context[:, 1:], prompts.last[:, None]], axis=1)
    positions, real = prompts.positions()

    def read(row: tuple[jax.Array, ...]) -> Chosen:
        # One row at a time: the logits of all would be the largest array by far.
        tokens, positions, segments, targets = row
        inputs = tokens[None], positions[None], segments[None]
        logits, _ = module.apply({"params": params}, *inputs, hyper=hyper)  # type: ignore[misc]
        return measured(logits[0], targets, alternatives)

    rows = prompts.context, positions, real.astype(jnp.int32), following
    with over():
        return jax.tree.map(placement.whole, jax.lax.map(read, rows))


_measured = jax.jit(measured, static_argnames="alternatives")


def read_stepwise(
    decoder: Decoder, prompts: Sequence[Sequence[int]], alternatives: int
) -> list[Chosen]:
    """The same by any decoder, one token after the other; a `Chosen` [B] for each column, from the left."""
    longest = max(map(len, prompts))
    tokens = np.zeros((len(prompts), longest), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row] = np.pad(prompt, (0, longest - len(prompt)), mode="edge")
    found, cache = [], None
    for column in range(1, longest):
        if cache is None:
            logits, cache = decoder.start(tokens[:, :1].tolist(), longest - 1)
        else:
            logits, cache = decoder.step(cache, tokens[:, column - 1])
        found.append(_measured(logits, tokens[:, column], alternatives=alternatives))
    return found
