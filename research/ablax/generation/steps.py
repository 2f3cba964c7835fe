"""The steps of decoding, pure: read the prompts, then one token in and the next one out."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ablax.generation import samplers
from ablax.generation.decoders import Cache, Prompts, Stepper, read_context, read_token
from ablax.generation.samplers import Chosen, History
from ablax.generation.sampling import Controls
from ablax.shapes import Array


@struct.dataclass
class Rules:
    """What a row goes by, besides its prompt.

    Attributes:
      keys: random keys [B].
      controls: of one row each, or of all.
      limits: int32 [B], how many tokens a row gets at most.
    """

    keys: Array
    controls: Controls
    limits: Array


@struct.dataclass
class State:
    """The state of the loop between two tokens.

    Attributes:
      token: int32 [B], the next token to be read.
      position: int32 [B], its position.
      index: int32 [], how many tokens have been chosen.
      done: bool [B].
      chosen: [B N], of which `counts` int32 [B] count.
    """

    cache: Cache
    token: Array
    position: Array
    index: Array
    done: Array
    chosen: Chosen
    counts: Array
    history: History


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


def history_of(prompts: Prompts, vocab_size: int, steps: tuple[str, ...]) -> History:
    """What penalties know after the prompts."""
    real, ones = prompts.positions()[1], jnp.ones((len(prompts.last), 1), bool)
    tokens = jnp.concatenate([prompts.context, prompts.last[:, None]], axis=1)
    return History.of(tokens, jnp.concatenate([real, ones], axis=1), vocab_size, steps)


def begin(
    model: Stepper,
    params: Any,
    hyper: Mapping[str, Any],
    prompts: Prompts,
    controls: Controls,
    *,
    new_tokens: int,
    vocab_size: int,
    alternatives: int,
) -> State:
    """Reads the prompts' contexts; room for `new_tokens` more tokens."""
    rows, columns = prompts.context.shape
    cache = read_context(model, params, hyper, prompts, columns + new_tokens)
    return State(
        cache=cache,
        token=prompts.last,
        position=prompts.lengths,
        index=jnp.zeros((), jnp.int32),
        done=~prompts.active,
        chosen=Chosen(
            tokens=jnp.zeros((rows, new_tokens), jnp.int32),
            log_probs=jnp.zeros((rows, new_tokens), jnp.float32),
            top_tokens=jnp.zeros((rows, new_tokens, alternatives), jnp.int32),
            top_log_probs=jnp.zeros((rows, new_tokens, alternatives), jnp.float32),
        ),
        counts=jnp.zeros(rows, jnp.int32),
        history=history_of(prompts, vocab_size, controls.steps),
    )


def draw(
    logits: Array, history: History, index: Array | int, rules: Rules, alternatives: int
) -> Chosen:
    """`samplers.choose` for the token number `index` of each row."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(rules.keys, index)
    return samplers.choose(logits, history, keys, index, rules.controls, alternatives)


def ended(tokens: Array, counts: Array, rules: Rules) -> Array:
    """bool [B]: whether a row of so many tokens ends with the last one, int32 [B]."""
    ends = jnp.asarray(rules.controls.ends)
    ends = jnp.broadcast_to(ends, (len(tokens), ends.shape[-1]))
    last = (tokens[:, None] == ends).any(axis=-1)
    return last | (counts >= rules.limits)


def advance(
    model: Stepper, params: Any, hyper: Mapping[str, Any], state: State, rules: Rules
) -> State:
    """Reads one token per row and chooses the next; rows that are done do nothing."""
    active = ~state.done
    logits, cache = read_token(
        model, params, hyper, state.cache, state.token, state.position, active
    )
    alternatives = state.chosen.top_tokens.shape[-1]
    new = draw(logits, state.history, state.index, rules, alternatives)

    def write(buffer: Array, value: Array) -> Array:
        kept = active.reshape(-1, *[1] * (value.ndim - 1))
        return buffer.at[:, state.index].set(jnp.where(kept, value, 0))

    token, counts = jnp.where(active, new.tokens, 0), state.counts + active
    return State(
        cache=cache,
        token=token,
        position=state.position + active,
        index=state.index + 1,
        done=state.done | ended(token, counts, rules),
        chosen=jax.tree.map(write, state.chosen, new),
        counts=counts,
        history=state.history.add(token, active),
    )


def run_until(model, params, hyper, state: State, rules: Rules, until) -> State:
    """Chooses tokens until there are `until`, or every row is done."""
    return jax.lax.while_loop(
        lambda s: (s.index < until) & ~s.done.all(),
        lambda s: advance(model, params, hyper, s, rules),
        state,
    )
