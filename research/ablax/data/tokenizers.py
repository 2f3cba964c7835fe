"""The table of tokenizers, and how one is made."""

from collections.abc import Iterable
from typing import Any

from ablax.data.exact_tokenizers import ByteConfig, CharacterConfig
from ablax.data.imported_tokenizers import FileConfig
from ablax.data.saved_tokenizers import load_tokenizer
from ablax.data.specials import Specials
from ablax.data.tokenizer import Tokenizer
from ablax.data.trained_tokenizers import BpeConfig, UnigramConfig, WordPieceConfig
from ablax.data.word_tokenizer import WordConfig

__all__ = ["TOKENIZERS", "Specials", "Tokenizer", "build_tokenizer", "load_tokenizer"]

TOKENIZERS: dict[str, type] = {
    "byte": ByteConfig,
    "character": CharacterConfig,
    "word": WordConfig,
    "bpe": BpeConfig,
    "wordpiece": WordPieceConfig,
    "unigram": UnigramConfig,
    "file": FileConfig,
}


def build_tokenizer(config: Any, texts: Iterable[str], specials: tuple[str, ...] = ()) -> Tokenizer:
    """Trains or loads a tokenizer.

    Args:
      config: a config of `TOKENIZERS`, or a user's own with `build(texts, specials)`.
      texts: the training documents; read once, and only by what learns from them.
      specials: names of the special tokens that are needed. They get the first ids, in the order of
        the fields of `Specials`; kinds that need <unk> add it. An imported tokenizer keeps its own.

    Raises:
      RequestError: it cannot be trained or loaded.
    """
    return config.build(texts, specials)
