"""What an objective gets and gives: the batch, the vocabulary, the sums."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ablax.objectives.sums import Sums
from ablax.shapes import Array

Batch = Mapping[str, Array]
Losses = tuple[
    Sums, dict[str, Sums], Any
]  # (what is descended, what is reported, what `apply` handed on)


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """What a batch transform may know of the tokenizer.

    Attributes:
      size: V.
      special: bool [V], True for special tokens.
      word_starts: bool [V], True for tokens that begin a word.
      mask: id of the mask token, if there is one.
    """

    size: int
    special: np.ndarray
    word_starts: np.ndarray
    mask: int | None


def token_spec(batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch of the token-level objectives: [B T] arrays of tokens, targets, weights, positions, segments."""
    names = ("tokens", "targets", "positions", "segment_ids")
    spec = {name: jax.ShapeDtypeStruct((batch_size, length), np.int32) for name in names}
    return spec | {"loss_weights": jax.ShapeDtypeStruct((batch_size, length), np.float32)}


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """What a batch transform needs to know of a tokenizer."""
    special = np.zeros(tokenizer.vocab_size, bool)
    special[list(tokenizer.specials.ids())] = True
    return Vocabulary(
        tokenizer.vocab_size, special, tokenizer.word_starts(), tokenizer.specials.mask
    )
