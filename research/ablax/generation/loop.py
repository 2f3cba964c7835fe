"""The decode loop: prompts to tokens, as one compiled program for neural models."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np

from ablax import placement
from ablax.generation.beams import Beams, Hypotheses, search_all
from ablax.generation.decoders import Prompts, stepper
from ablax.generation.reading import read_prompts
from ablax.generation.samplers import Chosen
from ablax.generation.sampling import Controls
from ablax.generation.steps import Rules, State, begin, bucket, row_bucket, run_until
from ablax.shapes import Array

CHUNK = 16  # tokens between two looks at the text for stop strings


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What was chosen: tokens [B N], log-probabilities in nats and likeliest tokens as in `Chosen`, and how many
    tokens count [B] (those that end a text included); after a search the scores [B] too.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    top_tokens: np.ndarray
    top_log_probs: np.ndarray
    counts: np.ndarray
    scores: np.ndarray | None = None


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

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        controls: Controls,
        max_new_tokens: int | Sequence[int],
        beams: Beams,
        alternatives: int = 0,
    ) -> Decoded:
        """The `num_beams` best continuations of each prompt, the best first; a row with a score of -inf is none."""
        ...


SIZES = ("new_tokens", "vocab_size", "alternatives")


def _by_rows(tree: Any) -> Any:
    """Rows shared by the devices; everything else whole on each."""
    return jax.tree.map(lambda x: placement.constrain(x, "B S"[: 2 * x.ndim - 1]), tree)


def _readable(state: State) -> State:
    """What the host reads is whole on every device."""
    chosen, counts, done = jax.tree.map(placement.whole, (state.chosen, state.counts, state.done))
    return dataclasses.replace(state, chosen=chosen, counts=counts, done=done)


@functools.partial(jax.jit, static_argnames=("model", "over", *SIZES))
def _start(model, params, hyper, prompts, rules, until, over, **sizes) -> State:
    with over():
        prompts = _by_rows(prompts)
        state = begin(model, params, hyper, prompts, rules.controls, **sizes)
        return _readable(run_until(model, params, hyper, state, rules, until))


@functools.partial(jax.jit, static_argnames=("model", "over"), donate_argnames=("state",))
def _continue(model, params, hyper, state, rules, until, over) -> State:
    with over():
        return _readable(run_until(model, params, hyper, state, rules, until))


@functools.partial(jax.jit, static_argnames=("model", "beams", "over", *SIZES))
def _search(
    model, params, hyper, prompts, rules, length_penalty, until, over, *, beams, **sizes
) -> Hypotheses:
    with over():
        inputs = _by_rows(prompts), rules, length_penalty, until
        found = search_all(model, params, hyper, *inputs, beams, sizes)
        return jax.tree.map(placement.whole, found)


def _decoded(chosen: Chosen, counts: Any, rows: int) -> Decoded:
    arrays = chosen.tokens, chosen.log_probs, chosen.top_tokens, chosen.top_log_probs, counts
    return Decoded(*(np.asarray(array)[:rows] for array in arrays))


def searched(found: Hypotheses, rows: int) -> Decoded:
    """What was found for each of the first `rows` prompts, one after the other."""
    flat = jax.tree.map(lambda x: np.concatenate(np.asarray(x)[:rows]), found)
    scores = np.where(flat.there, flat.scores, -np.inf)
    return dataclasses.replace(_decoded(flat.chosen, flat.counts, len(scores)), scores=scores)


def limits_of(max_new_tokens: int | Sequence[int], rows: int) -> np.ndarray:
    """int32 [B]: how many tokens each row gets at most."""
    return np.broadcast_to(np.asarray(max_new_tokens, np.int32), rows)


ALTERNATIVES = (0, 1, 5, 20)
"""How many likeliest tokens a program may tell: few numbers, so that there are few programs."""


def told(alternatives: int, vocab_size: int) -> int:
    """The smallest of `ALTERNATIVES` that suffices."""
    return min(vocab_size, *(size for size in ALTERNATIVES if size >= alternatives))


FIELDS = ("tokens", "log_probs", "top_tokens", "top_log_probs")
"""Of `Chosen` and `Decoded`."""


def empty(rows: int, columns: int, alternatives: int) -> Decoded:
    """Room for what is decoded."""
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
      cache_dtype: see `stepper`.
      over: says which devices share the rows of a batch, and the parameters if they lie so.
    """

    module: nn.Module
    params: Any
    hyper: Mapping[str, Any]
    vocab_size: int
    max_length: int | None = None
    cache_dtype: str | None = None
    over: placement.Over = contextlib.nullcontext

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
        shared, last = (
            (stepper(self.module, self.cache_dtype), self.params, self.hyper),
            int(limits.max()),
        )
        until = min(CHUNK, last) if watch else last
        state = _start(
            *shared,
            padded,
            rules,
            np.int32(until),
            self.over,
            new_tokens=bucket(last),
            vocab_size=self.vocab_size,
            alternatives=told(alternatives, self.vocab_size),
        )
        while watch and until < last:
            stopped = watch(_decoded(state.chosen, state.counts, rows))
            state = state.replace(done=state.done | stopped[fill])
            if bool(state.done.all()):
                break
            until = min(until + CHUNK, last)
            state = _continue(*shared, state, rules, np.int32(until), self.over)
        return _decoded(state.chosen, state.counts, rows)

    def read(self, prompts: Sequence[Sequence[int]], alternatives: int = 0) -> Decoded:
        """See `Engine`."""
        columns = bucket(max(1, *(len(prompt) - 1 for prompt in prompts)))
        padded = Prompts.pad(prompts, row_bucket(len(prompts)), columns)
        count = told(alternatives, self.vocab_size)
        chosen = read_prompts(
            self.module, self.params, self.hyper, padded, self.over, alternatives=count
        )
        found = empty(len(prompts), columns, count)
        for row, prompt in enumerate(prompts):
            found.counts[row] = count = len(prompt) - 1
            for name in FIELDS:
                values = np.asarray(getattr(chosen, name))[row]
                getattr(found, name)[row, :count] = values[columns - count :]
        return found

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        controls: Controls,
        max_new_tokens: int | Sequence[int],
        beams: Beams,
        alternatives: int = 0,
    ) -> Decoded:
        """See `Engine`."""
        rows = len(prompts)
        padded = Prompts.pad(prompts, row_bucket(rows), bucket(max(map(len, prompts)) - 1))
        fill = np.repeat(np.arange(len(padded.active)) % rows, beams.num_beams)
        limits = limits_of(max_new_tokens, rows)
        rules = Rules(None, controls.take(fill), limits[fill])  # type: ignore[arg-type]
        found = _search(
            stepper(self.module, self.cache_dtype),
            self.params,
            self.hyper,
            padded,
            rules,
            np.float32(beams.length_penalty),
            limits.max(),
            self.over,
            beams=dataclasses.replace(beams, length_penalty=0.0),
            new_tokens=bucket(int(limits.max())),
            vocab_size=self.vocab_size,
            alternatives=told(alternatives, self.vocab_size),
        )
        return searched(found, rows)
