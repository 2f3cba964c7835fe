"""The decode loop: prompts to tokens. One compiled program for neural models, the same steps in
Python for others.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np

from ablax.generation.decoders import Decoder, Prompts, stepper
from ablax.generation.reading import read_prompts, read_stepwise
from ablax.generation.samplers import Chosen
from ablax.generation.sampling import Controls
from ablax.generation.steps import (
    Rules,
    State,
    begin,
    bucket,
    draw,
    ended,
    history_of,
    row_bucket,
    run_until,
)
from ablax.shapes import Array

CHUNK = 16  # tokens between two looks at the text for stop strings


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What was chosen: tokens [B N], log-probabilities in nats and likeliest tokens as in `Chosen`, and how many
    tokens count [B] (those that end a text included).
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    top_tokens: np.ndarray
    top_log_probs: np.ndarray
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
        max_new_tokens: int | Sequence[int],
        watch: Watch | None = None,
        alternatives: int = 0,
    ) -> Decoded:
        """Appends up to `max_new_tokens` tokens (one number, or one per row) to each prompt.

        Args:
          prompts: token ids, at least one per row.
          keys: one random key per row [B].
          controls: how tokens are chosen and which ones end a row.
          watch: asked every `CHUNK` tokens which rows are done.
          alternatives: how many of the likeliest tokens are told at each place.
        """
        ...

    def read(self, prompts: Sequence[Sequence[int]], alternatives: int = 0) -> Decoded:
        """What the model gives each prompt's own tokens, from the second on."""
        ...


@functools.partial(jax.jit, static_argnames=("model", "new_tokens", "vocab_size", "alternatives"))
def _start(
    model, params, hyper, prompts, rules, until, *, new_tokens, vocab_size, alternatives
) -> State:
    sizes = new_tokens, vocab_size, alternatives
    state = begin(model, params, hyper, prompts, rules.controls, *sizes)
    return run_until(model, params, hyper, state, rules, until)


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("state",))
def _continue(model, params, hyper, state, rules, until) -> State:
    return run_until(model, params, hyper, state, rules, until)


def _decoded(chosen: Chosen, counts: Any, rows: int) -> Decoded:
    arrays = chosen.tokens, chosen.log_probs, chosen.top_tokens, chosen.top_log_probs, counts
    return Decoded(*(np.asarray(array)[:rows] for array in arrays))


def limits_of(max_new_tokens: int | Sequence[int], rows: int) -> np.ndarray:
    """int32 [B]: how many tokens each row gets at most."""
    return np.broadcast_to(np.asarray(max_new_tokens, np.int32), rows)


ALTERNATIVES = (0, 1, 5, 20)
"""How many likeliest tokens a program may tell: few numbers, so that there are few programs."""


def _told(alternatives: int, vocab_size: int) -> int:
    return min(vocab_size, *(size for size in ALTERNATIVES if size >= alternatives))


FIELDS = ("tokens", "log_probs", "top_tokens", "top_log_probs")


def _empty(rows: int, columns: int, alternatives: int) -> Decoded:
    shapes = (rows, columns), (rows, columns, alternatives)
    arrays = [np.zeros(shape, dtype) for shape in shapes for dtype in (np.int32, np.float32)]
    return Decoded(*arrays, counts=np.zeros(rows, np.int32))


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
        max_new_tokens: int | Sequence[int],
        watch: Watch | None = None,
        alternatives: int = 0,
    ) -> Decoded:
        """See `Engine`. With a `watch` the loop runs in chunks (a second program)."""
        rows = len(prompts)
        padded = Prompts.pad(prompts, row_bucket(rows), bucket(max(map(len, prompts)) - 1))
        fill = np.arange(len(padded.active)) % rows  # rows that only fill the batch
        limits = limits_of(max_new_tokens, rows)
        rules = Rules(keys[fill], controls.take(fill), limits[fill])  # type: ignore[arg-type]
        shared, last = (stepper(self.module), self.params, self.hyper), int(limits.max())
        until = min(CHUNK, last) if watch else last
        state = _start(
            *shared,
            padded,
            rules,
            np.int32(until),
            new_tokens=bucket(last),
            vocab_size=self.vocab_size,
            alternatives=_told(alternatives, self.vocab_size),
        )
        while watch and until < last:
            stopped = watch(_decoded(state.chosen, state.counts, rows))
            state = state.replace(done=state.done | stopped[fill])
            if bool(state.done.all()):
                break
            until = min(until + CHUNK, last)
            state = _continue(*shared, state, rules, np.int32(until))
        return _decoded(state.chosen, state.counts, rows)

    def read(self, prompts: Sequence[Sequence[int]], alternatives: int = 0) -> Decoded:
        """See `Engine`."""
        columns = bucket(max(1, *(len(prompt) - 1 for prompt in prompts)))
        padded = Prompts.pad(prompts, row_bucket(len(prompts)), columns)
        told = _told(alternatives, self.vocab_size)
        chosen = read_prompts(self.module, self.params, self.hyper, padded, alternatives=told)
        found = _empty(len(prompts), columns, told)
        for row, prompt in enumerate(prompts):
            found.counts[row] = count = len(prompt) - 1
            for name in FIELDS:
                values = np.asarray(getattr(chosen, name))[row]
                getattr(found, name)[row, :count] = values[columns - count :]
        return found


_draw = jax.jit(draw, static_argnames="alternatives")
_history_of = jax.jit(history_of, static_argnames=("vocab_size", "steps"))
_add = jax.jit(lambda history, tokens, active: history.add(tokens, active))
_ended = jax.jit(ended)


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
        max_new_tokens: int | Sequence[int],
        watch: Watch | None = None,
        alternatives: int = 0,
    ) -> Decoded:
        """See `Engine`."""
        rows, limits = len(prompts), limits_of(max_new_tokens, len(prompts))
        last, rules = int(limits.max()), Rules(keys, controls, limits)  # type: ignore[arg-type]
        logits, cache = self.decoder.start(prompts, last)
        padded = Prompts.pad(prompts, rows, bucket(max(map(len, prompts)) - 1))
        history = _history_of(padded, vocab_size=logits.shape[1], steps=controls.steps)
        found, done = _empty(rows, last, alternatives), np.zeros(rows, bool)
        for index in range(last):
            new = _draw(logits, history, index, rules, alternatives=alternatives)
            for name in FIELDS:
                getattr(found, name)[~done, index] = np.asarray(getattr(new, name))[~done]
            tokens, active = found.tokens[:, index], ~done
            np.add(found.counts, active, out=found.counts)
            history = _add(history, tokens, active)
            done |= active & np.asarray(_ended(tokens, found.counts, rules))
            if watch and (index + 1) % CHUNK == 0:
                done |= watch(found)
            if done.all() or index + 1 == last:
                break
            logits, cache = self.decoder.step(cache, tokens)
        return found

    def read(self, prompts: Sequence[Sequence[int]], alternatives: int = 0) -> Decoded:
        """See `Engine`."""
        columns = read_stepwise(self.decoder, prompts, alternatives)
        found = _empty(len(prompts), len(columns), alternatives)
        found.counts[:] = [len(prompt) - 1 for prompt in prompts]
        for index, column in enumerate(columns):
            for name in FIELDS:
                getattr(found, name)[:, index] = getattr(column, name)
        return found
