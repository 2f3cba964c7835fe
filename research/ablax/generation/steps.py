"""The steps of decoding, pure: read the prompts, then one token in and the next one out."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ablax.generation import samplers
from ablax.generation.decoders import Cache, Prompts, Stepper, read_context, read_token
from ablax.generation.samplers import Controls
from ablax.shapes import Array


@struct.dataclass
class State:
    """The state of the loop between two tokens.

    Attributes:
      token: int32 [B], the next token to be read.
      position: int32 [B], its position.
      index: int32 [], how many tokens have been chosen.
      done: bool [B].
      tokens, log_probs: [B N], what was chosen.
      counts: int32 [B].
      seen: bool [B V] for the repetition penalty, or None.
    """

    cache: Cache
    token: Array
    position: Array
    index: Array
    done: Array
    tokens: Array
    log_probs: Array
    counts: Array
    seen: Array | None


def bucket(size: int) -> int:
    """The next of a few sizes (16, 32, ... 128, 160, ... 256, 320 ...): at most 15 more, or beyond 64
    a quarter more; 0 stays 0.
    """
    if size == 0:
        return 0
    step = max(16, 1 << max(0, (size - 1).bit_length() - 3))
    return -(-size // step) * step


def row_bucket(rows: int) -> int:
    """The next power of two."""
    return 1 << (rows - 1).bit_length()


def mark_seen(context: Array, lengths: Array, last: Array, vocab_size: int) -> Array:
    """bool [B V]: the tokens of the prompts."""
    rows = jnp.arange(len(last))
    real = jnp.arange(context.shape[1])[None, :] < lengths[:, None]
    seen = jnp.zeros((len(last), vocab_size), bool).at[rows, last].set(True)
    return seen.at[rows[:, None], context].max(real)


def begin(
    model: Stepper,
    params: Any,
    hyper: Mapping[str, Any],
    prompts: Prompts,
    controls: Controls,
    new_tokens: int,
    vocab_size: int,
) -> State:
    """Reads the prompts' contexts; room for `new_tokens` more tokens."""
    rows, columns = prompts.context.shape
    cache = read_context(
        model, params, hyper, prompts.context, prompts.lengths, columns + new_tokens
    )
    seen = None
    if "repetition_penalty" in controls.steps:
        seen = mark_seen(prompts.context, prompts.lengths, prompts.last, vocab_size)
    return State(
        cache=cache,
        token=prompts.last,
        position=prompts.lengths,
        index=jnp.zeros((), jnp.int32),
        done=~prompts.active,
        tokens=jnp.zeros((rows, new_tokens), jnp.int32),
        log_probs=jnp.zeros((rows, new_tokens), jnp.float32),
        counts=jnp.zeros(rows, jnp.int32),
        seen=seen,
    )


def draw(
    logits: Array, seen: Array | None, keys: Array, index: Array | int, controls: Controls
) -> tuple[Array, Array]:
    """`samplers.choose` for the token number `index` of each row."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    return samplers.choose(logits, seen, keys, controls)


def advance(
    model: Stepper,
    params: Any,
    hyper: Mapping[str, Any],
    state: State,
    keys: Array,
    controls: Controls,
    eos: Array,
) -> State:
    """Reads one token per row and chooses the next; rows that are done do nothing."""
    active = ~state.done
    logits, cache = read_token(
        model, params, hyper, state.cache, state.token, state.position, active
    )
    token, log_prob = draw(logits, state.seen, keys, state.index, controls)
    token, log_prob = jnp.where(active, token, 0), jnp.where(active, log_prob, 0.0)
    seen = state.seen
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].max(active)
    return State(
        cache=cache,
        token=token,
        position=state.position + active,
        index=state.index + 1,
        done=state.done | (token == eos),
        tokens=state.tokens.at[:, state.index].set(token),
        log_probs=state.log_probs.at[:, state.index].set(log_prob),
        counts=state.counts + active,
        seen=seen,
    )


def run_until(model, params, hyper, state: State, keys, controls, eos, until) -> State:
    """Chooses tokens until there are `until`, or every row is done."""
    return jax.lax.while_loop(
        lambda s: (s.index < until) & ~s.done.all(),
        lambda s: advance(model, params, hyper, s, keys, controls, eos),
        state,
    )
