"""Whole words between white space, with `<unk>` for those outside the vocabulary."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ablax.config import RequestError, knob
from ablax.data.specials import Specials, place_first
from ablax.data.tokenizer import Ids, Tokenizer

NEWLINE = "\n"


class WordTokenizer(Tokenizer):
    """Words by number, after the special tokens. Lossy: white space is not kept.

    Our own, because splitting at white space and looking words up in a dict is what Python does
    several times faster than the `tokenizers` library.

    Args:
      words: the vocabulary, in the order of the ids. Where a line end is a word, it is among them.
    """

    KIND = "word"

    def __init__(self, words: Sequence[str], specials: Specials, special_texts: dict[int, str]):
        first = len(special_texts)
        super().__init__(first + len(words), specials, special_texts, lossless=False)
        self.words = list(words)
        self._ids = {word: first + number for number, word in enumerate(words)}

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> Ids:
        words = split_words(text, NEWLINE in self._ids)
        ids = map(self._ids.get, words, itertools.repeat(self.specials.unk))
        return np.fromiter(ids, np.int32, len(words))

    def decode_plain(self, ids: Ids) -> str:
        text = " ".join(map(self.token_text, ids.tolist()))
        return text.replace(" \n", "\n").replace("\n ", "\n")

    def plain_text(self, token: int) -> str:
        return self.words[token - len(self.special_texts)]

    def starts_word(self, token: int) -> bool:
        return True

    def content(self) -> dict[str, Any]:
        return {"words": self.words}

    @classmethod
    def from_content(
        cls, content: dict[str, Any], specials: Specials, special_texts: dict[int, str]
    ) -> "WordTokenizer":
        return cls(content["words"], specials, special_texts)


def split_words(text: str, newline: bool) -> list[str]:
    """The words between white space (`str.split`); with `newline`, each line end is one too."""
    if not newline:
        return text.split()
    words: list[str] = []
    for line in text.split(NEWLINE):
        words += line.split()
        words.append(NEWLINE)
    words.pop()
    return words


@dataclasses.dataclass(frozen=True)
class WordConfig:
    """Words between white space, as in WikiText (Merity et al. 2017); others are <unk>. Lossy."""

    vocab_size: int | None = knob(
        None, "V at most, special tokens included: the commonest words; none for all"
    )
    min_count: int = knob(1, "how often a word must occur")
    vocabulary: str | None = knob(
        None, "a file with one word a line, in the order of their ids; nothing is counted then"
    )
    newline: bool = knob(
        False, "whether each line end is a word too, as WikiText's models have it (their <eos>)"
    )

    def __post_init__(self) -> None:
        if self.vocabulary is not None and (self.vocab_size is not None or self.min_count != 1):
            raise RequestError(
                "vocabulary fixes the words; leave vocab_size and min_count out, or leave it out"
            )

    def build(self, texts: Iterable[str], specials: tuple[str, ...]) -> Tokenizer:
        """Counts the words of the training text, or reads them; <unk> is added.

        Raises:
          RequestError: there is no text, or the vocabulary file cannot be used.
        """
        ids, written = place_first((*specials, "unk"))
        words = self._count(texts) if self.vocabulary is None else read_words(self.vocabulary)
        if self.newline and NEWLINE not in words:
            words.append(NEWLINE)
        if self.vocab_size is not None:
            if self.vocab_size <= len(written):
                raise RequestError(
                    f"tokenizer.vocab_size={self.vocab_size} has no room for words beside "
                    f"{len(written)} special tokens; raise it"
                )
            words = words[: self.vocab_size - len(written)]
        return WordTokenizer(words, ids, written)

    def _count(self, texts: Iterable[str]) -> list[str]:
        counts = collections.Counter()
        for text in texts:
            counts.update(split_words(text, self.newline))
        if not counts:
            raise RequestError("tokenizer word: the training split holds no words")
        # A text that has its rare words replaced already, as WikiText, writes them like ours.
        del counts["<unk>"]
        kept = [(-count, word) for word, count in counts.items() if count >= self.min_count]
        return [word for _, word in sorted(kept)]


def read_words(path: str) -> list[str]:
    """The words of a vocabulary file, one a line; blank lines and `<unk>` are passed over.

    Raises:
      RequestError: it cannot be read, is empty, or has a word twice.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"tokenizer.vocabulary={path}: {error}") from None
    words = [line.strip() for line in lines]
    words = [word for word in words if word not in ("", "<unk>")]
    repeated = [word for word, count in collections.Counter(words).items() if count > 1]
    if repeated or not words:
        what = f"{repeated[0]!r} stands twice" if repeated else "no words"
        raise RequestError(f"tokenizer.vocabulary={path}: {what}; write one word a line, each once")
    return words
