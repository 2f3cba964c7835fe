"""Filling: a masked model says what stands at the masked positions."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ablax.config import RequestError
from ablax.data.tokenizer import Tokenizer
from ablax.generation.decoders import position_limit
from ablax.generation.steps import bucket, row_bucket
from ablax.shapes import Array, Bool, Float, Int, typed

MASK_TEXT = re.compile(r"\[MASK\]|<mask>")


@dataclasses.dataclass(frozen=True)
class Filled:
    """What a model puts at masked positions.

    Attributes:
      tokens: int32 [B T], the input with the likeliest token at each masked position.
      candidates: int32 [B T K], the K likeliest tokens at every position, best first.
      probabilities: float32 [B T K], theirs.
    """

    tokens: np.ndarray
    candidates: np.ndarray
    probabilities: np.ndarray


class Filler(Protocol):
    """What `fill` needs of a model."""

    def fill(self, tokens: np.ndarray, mask: np.ndarray) -> Filled:
        """Fills int32 [B T] where bool [B T] is True, every position given all unmasked ones."""
        ...


@typed
def fill_positions(
    logits: Float[Array, "B T V"], tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], top_k: int
) -> tuple[Int[Array, "B T"], Int[Array, "B T K"], Float[Array, "B T K"]]:
    """The filled tokens, the `top_k` candidates and their probabilities."""
    probabilities, candidates = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), top_k)
    filled = jnp.where(mask, candidates[..., 0].astype(tokens.dtype), tokens)
    return filled, candidates, probabilities


@functools.partial(jax.jit, static_argnames=("module", "top_k"))
def _fill(module, params, hyper, tokens, mask, segment_ids, mask_id, *, top_k):
    index = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    positions = jnp.where(segment_ids > 0, index, 0)
    shown = jnp.where(mask, mask_id, tokens)
    logits, _ = module.apply({"params": params}, shown, positions, segment_ids, hyper=hyper)
    return fill_positions(logits, tokens, mask, top_k)


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedFiller:
    """`Filler` of a bidirectional Linen module trained with masks: one forward pass fills all
    positions.

    Positions are filled independently of each other (Devlin et al. 2019, section 3.1).

    Attributes:
      hyper: the model's traced knobs.
      mask_id: id of the mask token.
      top_k: how many candidates are returned.
    """

    module: nn.Module
    params: Any
    hyper: Mapping[str, Any]
    mask_id: int
    top_k: int = 5

    def fill(
        self, tokens: np.ndarray, mask: np.ndarray, lengths: np.ndarray | None = None
    ) -> Filled:
        """See `Filler`. Rows may be padded on the right; `lengths` [B] says how much of each
        counts.
        """
        rows, columns = tokens.shape
        lengths = np.full(rows, columns) if lengths is None else lengths
        shape = (row_bucket(rows), bucket(columns))
        padded = np.zeros((3, *shape), np.int32)
        padded[0, :rows, :columns] = tokens
        padded[1, :rows, :columns] = mask
        padded[2, :rows, :columns] = np.arange(columns) < lengths[:, None]
        result = _fill(
            self.module,
            self.params,
            self.hyper,
            padded[0],
            padded[1] > 0,
            padded[2],
            np.int32(self.mask_id),
            top_k=self.top_k,
        )
        return Filled(*(np.asarray(array)[:rows, :columns] for array in result))


@dataclasses.dataclass(frozen=True)
class Filling:
    """A filled text.

    Attributes:
      text: the text with the likeliest token at every mask.
      candidates: for each mask in order, (text of a token, probability) pairs, likeliest first.
    """

    text: str
    candidates: tuple[tuple[tuple[str, float], ...], ...]


def mask_token(tokenizer: Tokenizer) -> int:
    """The id of the mask token.

    Raises:
      RequestError: if there is none.
    """
    mask = tokenizer.specials.mask
    if mask is None:
        raise RequestError("the tokenizer has no mask token; use the run of a masked model")
    return mask


def carries_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a token carries the space before it, so that a mask stands for that space too."""
    try:
        return len(tokenizer.encode(" a")) == 1
    except RequestError:  # a vocabulary of characters without a space
        return False


def encode_masked(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """The ids of a text with `[MASK]` or `<mask>`, between <bos> and <eos> if there are such, and
    the masks' places.

    Raises:
      RequestError: if the tokenizer has no mask token or the text has no mask.
    """
    specials, mask = tokenizer.specials, mask_token(tokenizer)
    pieces = MASK_TEXT.split(text)
    if len(pieces) == 1:
        raise RequestError(
            f"text {text[:60]!r} has no [MASK]; write [MASK] where a token is missing"
        )
    spaced = carries_spaces(tokenizer)
    ids = [] if specials.bos is None else [specials.bos]
    places = []
    for index, piece in enumerate(pieces):
        last = index + 1 == len(pieces)
        if spaced and not last:
            piece = piece.removesuffix(" ")
        ids += tokenizer.encode(piece).tolist()
        if not last:
            places.append(len(ids))
            ids.append(mask)
    return ids + ([] if specials.eos is None else [specials.eos]), places


def fill(
    module: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    hyper: Mapping[str, Any],
    top_k: int = 5,
    max_length: int | None = None,
    batch_rows: int = 32,
) -> list[Filling]:
    """Fills each `[MASK]` (or `<mask>`) of each text with the likeliest token.

    Args:
      params: the module's parameters.
      hyper: the model's traced knobs.
      top_k: candidates per mask.
      max_length: tokens that a text may have; None: as many as the module has positions for.
      batch_rows: texts that are filled together.

    Raises:
      RequestError: for a text without a mask or longer than `max_length`, or `top_k` out of range.
    """
    if not 1 <= top_k <= tokenizer.vocab_size:
        raise RequestError(f"top_k={top_k} must be in [1, {tokenizer.vocab_size}] (the vocabulary)")
    filler = MaskedFiller(module, params, hyper, mask_token(tokenizer), top_k)
    encoded = [encode_masked(tokenizer, text) for text in texts]
    max_length = position_limit(module) if max_length is None else max_length
    for index, (ids, _) in enumerate(encoded):
        if max_length is not None and len(ids) > max_length:
            raise RequestError(
                f"text {index} has {len(ids)} tokens; the model reads {max_length}; shorten it"
            )
    results = []
    for first in range(0, len(encoded), batch_rows):
        batch = encoded[first : first + batch_rows]
        lengths = np.array([len(ids) for ids, _ in batch])
        tokens = np.zeros((len(batch), lengths.max()), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, (ids, places) in enumerate(batch):
            tokens[row, : len(ids)] = ids
            mask[row, places] = True
        filled = filler.fill(tokens, mask, lengths)
        for row, (ids, places) in enumerate(batch):
            results.append(_filling(tokenizer, filled, row, len(ids), places))
    return results


def _filling(
    tokenizer: Tokenizer, filled: Filled, row: int, length: int, places: Sequence[int]
) -> Filling:
    candidates = tuple(
        tuple(
            (tokenizer.token_text(int(token)), float(probability))
            for token, probability in zip(filled.candidates[row, at], filled.probabilities[row, at])
        )
        for at in places
    )
    return Filling(tokenizer.decode(filled.tokens[row, :length]), candidates)
