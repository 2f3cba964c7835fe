"""Decoders: one token in, the next token's logits out, for every family of models.

A neural model is driven through `Stepper`, whose two kinds share one rule: all rows of a batch use
the same slot of the cache, and a slot with segment 0 (a shorter prompt's padding, a finished row)
is a hole that nobody attends to.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ablax.config import RequestError
from ablax.models.network import Transformer
from ablax.models.ngram import Ngram
from ablax.models.positions import LearnedPositions
from ablax.shapes import Array, Bool, Float, Int, typed

Cache = Any


class Decoder(Protocol):
    """What generation needs of a model of any family."""

    def start(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[Array, Cache]:
        """Reads prompts of at least one token; gives the logits float32 [B V] after them.

        Args:
          prompts: token ids, one sequence per row, of any lengths.
          new_tokens: how many tokens `step` will be given at most.
        """
        ...

    def step(self, cache: Cache, tokens: Array | np.ndarray) -> tuple[Array, Cache]:
        """Appends one token to each row (int32 [B]); gives the logits float32 [B V] after it."""
        ...

    def rows(self, cache: Cache, rows: np.ndarray) -> Cache:
        """The cache of these rows, in this order; a row may come several times."""
        ...


@struct.dataclass
class Prompts:
    """Prompts as fixed shapes, their last tokens apart: the loop feeds those like any other token.

    Attributes:
      context: int32 [B C], all but the last token, padded on the left, so that the columns before a new one are a
        row's last tokens.
      lengths: int32 [B], how many tokens of `context` count.
      last: int32 [B].
      active: bool [B], False for rows that only fill the batch.
    """

    context: Array
    lengths: Array
    last: Array
    active: Array

    @classmethod
    def pad(cls, prompts: Sequence[Sequence[int]], rows: int, columns: int) -> "Prompts":
        """Lays prompts of at least one token into `rows` rows with contexts of `columns` tokens
        (NumPy).
        """
        context = np.zeros((rows, columns), np.int32)
        lengths, last = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        for row, prompt in enumerate(prompts):
            lengths[row] = len(prompt) - 1
            context[row, columns - len(prompt) + 1 :] = prompt[:-1]
            last[row] = prompt[-1]
        return cls(context, lengths, last, np.arange(rows) < len(prompts))  # type: ignore[arg-type]

    def positions(self) -> tuple[Array, Array]:
        """Of the context: positions int32 [B C], and which columns are no padding, bool [B C]."""
        columns = jnp.arange(self.context.shape[1], dtype=jnp.int32)[None]
        positions = columns - (self.context.shape[1] - self.lengths[:, None])
        return jnp.maximum(positions, 0), positions >= 0


def position_limit(module: nn.Module) -> int | None:
    """How many positions a module knows: its own `position_limit`, or the table of a Transformer.

    None: as many as one likes.
    """
    if isinstance(module, Transformer):
        return module.max_length if isinstance(module.config.positions, LearnedPositions) else None
    return getattr(module, "position_limit", None)


@struct.dataclass
class CachedStepper:
    """A module with `init_cache`: key/value cache or carried state.

    Attributes:
      cache_dtype: of keys and values; the model's when None.
    """

    module: nn.Module = struct.field(pytree_node=False)
    cache_dtype: str | None = struct.field(pytree_node=False, default=None)

    def empty(self, batch_size: int, length: int) -> Cache:
        """A cache without a token, with room for `length` columns."""
        if isinstance(self.module, Transformer):  # whose padding stands before a row's tokens
            return self.module.init_cache(batch_size, length, dtype=self.cache_dtype, ring=True)
        return self.module.init_cache(batch_size, length)  # type: ignore[attr-defined]

    def feed(self, params, hyper, cache, tokens, positions, segment_ids) -> tuple[Array, Cache]:
        """Reads columns int32 [B T]; gives the logits float32 [B V] at the last one."""
        logits, cache = self.module.apply(
            {"params": params}, tokens, positions, segment_ids, hyper=hyper, carry=cache
        )  # type: ignore[misc]
        return logits[:, -1], cache

    def rows(self, cache: Cache, rows: Array) -> Cache:
        """The cache of these rows, in this order; a row may come several times."""
        if hasattr(cache, "rows"):
            return cache.rows(rows)
        return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), cache)


@struct.dataclass
class RecomputingStepper:
    """A module without a cache: its cache is the text so far, each step a full forward pass."""

    module: nn.Module = struct.field(pytree_node=False)

    def empty(self, batch_size: int, length: int) -> Cache:
        """See `CachedStepper`."""
        columns = jnp.zeros((3, batch_size, length), jnp.int32)  # tokens, positions, segments
        return columns, jnp.zeros((), jnp.int32)

    def feed(self, params, hyper, cache, tokens, positions, segment_ids) -> tuple[Array, Cache]:
        """See `CachedStepper`."""
        columns, slot = cache
        new = jnp.stack([tokens, positions, segment_ids])
        columns = jax.lax.dynamic_update_slice_in_dim(columns, new, slot, axis=2)
        slot = slot + tokens.shape[1]
        logits, _ = self.module.apply({"params": params}, *columns, hyper=hyper)  # type: ignore[misc]
        return jax.lax.dynamic_index_in_dim(logits, slot - 1, axis=1, keepdims=False), (
            columns,
            slot,
        )

    def rows(self, cache: Cache, rows: Array) -> Cache:
        """See `CachedStepper`."""
        columns, slot = cache
        return jnp.take(columns, rows, axis=1), slot


Stepper = CachedStepper | RecomputingStepper


CACHE_DTYPES = ("float32", "bfloat16")


def stepper(module: nn.Module, cache_dtype: str | None = None) -> Stepper:
    """The way to drive a module: through its cache if it has one.

    Args:
      cache_dtype: of a Transformer's keys and values, float32 or bfloat16; the model's when None.

    Raises:
      RequestError: if there are no keys and values, or they cannot be of this dtype.
    """
    if cache_dtype is not None and not isinstance(module, Transformer):
        raise RequestError(
            f"cache_dtype={cache_dtype} is for keys and values, which this model does not keep; leave it out"
        )
    if cache_dtype not in (None, *CACHE_DTYPES):
        raise RequestError(f"cache_dtype={cache_dtype} must be {' or '.join(CACHE_DTYPES)}")
    if hasattr(module, "init_cache"):
        return CachedStepper(module, cache_dtype)
    return RecomputingStepper(module)


@typed
def read_context(
    model: Stepper,
    params: Any,
    hyper: Mapping[str, Any],
    prompts: Prompts,
    length: int,
) -> Cache:
    """The cache of `length` columns after the prompts' contexts; computes no logits."""
    batch_size, columns = prompts.context.shape
    cache = model.empty(batch_size, length)
    if columns == 0:
        return cache
    positions, real = prompts.positions()
    segments = real.astype(jnp.int32)
    return model.feed(params, hyper, cache, prompts.context, positions, segments)[1]


@typed
def read_token(
    model: Stepper,
    params: Any,
    hyper: Mapping[str, Any],
    cache: Cache,
    token: Int[Array, "B"],
    position: Int[Array, "B"],
    active: Bool[Array, "B"],
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads one column; rows that are not active get a hole."""
    segment = active.astype(jnp.int32)
    position = jnp.where(active, position, 0)
    return model.feed(params, hyper, cache, token[:, None], position[:, None], segment[:, None])


_read_context = jax.jit(read_context, static_argnames=("model", "length"))
_read_token = jax.jit(read_token, static_argnames=("model",))
_rows = jax.jit(lambda model, cache, rows: model.rows(cache, rows), static_argnames=("model",))


class NeuralDecoder:
    """`Decoder` of a Linen module, one call per token; `loop` makes one program of them."""

    def __init__(self, module: nn.Module, params: Any, hyper: Mapping[str, Any]):
        self.model, self.params, self.hyper = stepper(module), params, hyper

    def start(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[Array, Cache]:
        columns = max(map(len, prompts)) - 1
        padded = Prompts.pad(prompts, len(prompts), columns)
        cache = _read_context(
            self.model, self.params, self.hyper, padded, length=columns + 1 + new_tokens
        )
        return self.step((cache, jnp.asarray(padded.lengths)), padded.last)

    def step(self, cache: Cache, tokens: Array | np.ndarray) -> tuple[Array, Cache]:
        inner, position = cache
        active = jnp.ones(position.shape, bool)
        tokens = jnp.asarray(tokens, jnp.int32)
        logits, inner = _read_token(
            self.model, self.params, self.hyper, inner, tokens, position, active
        )
        return logits, (inner, position + 1)

    def rows(self, cache: Cache, rows: np.ndarray) -> Cache:
        inner, position = cache
        return _rows(self.model, inner, rows), position[rows]


class NgramDecoder:
    """`Decoder` of a fitted n-gram model; its cache is the last order - 1 tokens of each row, -1
    where there are none.
    """

    def __init__(self, model: Ngram):
        self.model = model

    def _logits(self, contexts: np.ndarray) -> tuple[Array, Cache]:
        return jnp.asarray(self.model.log_probs(contexts), jnp.float32), contexts

    def start(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[Array, Cache]:
        del new_tokens
        width = self.model.config.order - 1
        contexts = np.full((len(prompts), width), -1, np.int64)
        for row, prompt in enumerate(prompts):
            kept = np.asarray(prompt)[max(0, len(prompt) - width) :]
            contexts[row, width - len(kept) :] = kept
        return self._logits(contexts)

    def step(self, cache: Cache, tokens: Array | np.ndarray) -> tuple[Array, Cache]:
        contexts = np.concatenate([cache, np.asarray(tokens, np.int64)[:, None]], axis=1)
        return self._logits(contexts[:, 1:])

    def rows(self, cache: Cache, rows: np.ndarray) -> Cache:
        return cache[rows]
