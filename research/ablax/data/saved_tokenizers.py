"""Tokenizers that Ablax saved."""

from collections.abc import Iterable
from pathlib import Path

from ablax.data.exact_tokenizers import ByteTokenizer, CharacterTokenizer
from ablax.data.subword_tokenizer import LibraryTokenizer
from ablax.data.tokenizer import Tokenizer, read_tokenizer
from ablax.data.word_tokenizer import WordTokenizer

_CLASSES: tuple[type[Tokenizer], ...] = (
    ByteTokenizer,
    CharacterTokenizer,
    WordTokenizer,
    LibraryTokenizer,
)


def load_tokenizer(folder: Path | str, extend: Iterable[type[Tokenizer]] = ()) -> Tokenizer:
    """Reads a tokenizer that `Tokenizer.save` wrote; it gives the same ids.

    Args:
      folder: where it was saved.
      extend: a user's own classes.

    Raises:
      RequestError: there is none, or it is damaged.
    """
    return read_tokenizer(folder, {cls.KIND: cls for cls in (*_CLASSES, *extend)})
