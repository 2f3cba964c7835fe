"""The decode loop: prompts to tokens. One compiled program for neural models, the same steps in
Python for others.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ablax.generation.decoders import Decoder, Prompts, stepper
from ablax.generation.samplers import Controls
from ablax.generation.steps import State, begin, bucket, draw, row_bucket, run_until
from ablax.shapes import Array

NO_EOS = -1
CHUNK = 16  # tokens between two looks at the text for stop strings


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Tokens [B N], their log-probabilities in nats [B N], and how many of them count [B] (<eos>
    included).
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    counts: np.ndarray


# Looks at what there is so far; True [B] for rows that need no more tokens.
Watch = Callable[[Decoded], np.ndarray]


class Engine(Protocol):
    """Continues prompts; `Compiled` for neural models, `Stepwise` for any `Decoder`."""

    @property
    def max_length(self) -> int | None:
        """Tokens that a prompt and its continuation may have together; None: any number."""
        ...

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Array,
        controls: Controls,
        eos: int | None,
        max_new_tokens: int,
        watch: Watch | None = None,
    ) -> Decoded:
        """Appends up to `max_new_tokens` tokens to each prompt.

        Args:
          prompts: token ids, at least one per row.
          keys: one random key per row [B].
          eos: the token that ends a row; None if there is none.
          watch: asked every `CHUNK` tokens which rows are done.
        """
        ...


@functools.partial(jax.jit, static_argnames=("model", "new_tokens", "vocab_size"))
def _start(
    model, params, hyper, prompts, keys, controls, eos, until, *, new_tokens, vocab_size
) -> State:
    state = begin(model, params, hyper, prompts, controls, new_tokens, vocab_size)
    return run_until(model, params, hyper, state, keys, controls, eos, until)


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("state",))
def _continue(model, params, hyper, state, keys, controls, eos, until) -> State:
    return run_until(model, params, hyper, state, keys, controls, eos, until)


def _decoded(tokens, log_probs, counts, rows: int) -> Decoded:
    return Decoded(
        np.asarray(tokens)[:rows], np.asarray(log_probs)[:rows], np.asarray(counts)[:rows]
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """`Engine` of a Linen module: reading and decoding are one program per bucket of shapes.

    Attributes:
      vocab_size: V.
      hyper: the model's traced knobs.
      max_length: None for models without learned positions.
    """

    module: nn.Module
    params: Any
    hyper: Mapping[str, Any]
    vocab_size: int
    max_length: int | None = None

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Array,
        controls: Controls,
        eos: int | None,
        max_new_tokens: int,
        watch: Watch | None = None,
    ) -> Decoded:
        """See `Engine`. With a `watch` the loop runs in chunks (a second program)."""
        rows = len(prompts)
        padded = Prompts.pad(prompts, row_bucket(rows), bucket(max(map(len, prompts)) - 1))
        fill = jnp.zeros(len(padded.active) - rows, jnp.int32)
        keys = keys[jnp.concatenate([jnp.arange(rows, dtype=jnp.int32), fill])]
        shared = (stepper(self.module), self.params, self.hyper)
        rules = (keys, controls, np.int32(NO_EOS if eos is None else eos))
        until = min(CHUNK, max_new_tokens) if watch else max_new_tokens
        sizes = {"new_tokens": bucket(max_new_tokens), "vocab_size": self.vocab_size}
        state = _start(*shared, padded, *rules, np.int32(until), **sizes)
        while watch and until < max_new_tokens:
            stopped = watch(_decoded(state.tokens, state.log_probs, state.counts, rows))
            stopped = np.concatenate([stopped, np.ones(len(fill), bool)])
            state = state.replace(done=state.done | stopped)
            if bool(state.done.all()):
                break
            until = min(until + CHUNK, max_new_tokens)
            state = _continue(*shared, state, *rules, np.int32(until))
        return _decoded(state.tokens, state.log_probs, state.counts, rows)


_draw = jax.jit(draw)


@dataclasses.dataclass(frozen=True, eq=False)
class Stepwise:
    """`Engine` of any `Decoder`: the same steps as `Compiled`, in Python."""

    decoder: Decoder
    max_length: int | None = None

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Array,
        controls: Controls,
        eos: int | None,
        max_new_tokens: int,
        watch: Watch | None = None,
    ) -> Decoded:
        """See `Engine`."""
        rows = len(prompts)
        tokens = np.zeros((rows, max_new_tokens), np.int32)
        log_probs = np.zeros((rows, max_new_tokens), np.float32)
        counts, done = np.zeros(rows, np.int32), np.zeros(rows, bool)
        logits, cache = self.decoder.start(prompts, max_new_tokens)
        seen = None
        if "repetition_penalty" in controls.steps:
            seen = np.zeros(logits.shape, bool)
            for row, prompt in enumerate(prompts):
                seen[row, np.asarray(prompt)] = True
        for index in range(max_new_tokens):
            new, log_prob = map(np.asarray, _draw(jnp.asarray(logits), seen, keys, index, controls))
            tokens[~done, index], log_probs[~done, index] = new[~done], log_prob[~done]
            counts += ~done
            if seen is not None:
                seen[np.arange(rows), new] |= ~done
            done |= new == eos
            if watch and (index + 1) % CHUNK == 0:
                done |= watch(Decoded(tokens, log_probs, counts))
            if done.all() or index + 1 == max_new_tokens:
                break
            logits, cache = self.decoder.step(cache, tokens[:, index])
        return Decoded(tokens, log_probs, counts)
