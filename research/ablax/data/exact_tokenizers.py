"""Tokenizers without a learned vocabulary: bytes and characters."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ablax.config import RequestError, knob
from ablax.data.specials import Specials, place_first
from ablax.data.tokenizer import Ids, Tokenizer, begins_word


class ByteTokenizer(Tokenizer):
    """Bytes of UTF-8: V = 256 and the special tokens, which come first."""

    KIND = "byte"

    def __init__(self, specials: Specials, special_texts: dict[int, str]):
        super().__init__(256 + len(special_texts), specials, special_texts, lossless=True)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        first = len(self.special_texts)
        return [
            np.frombuffer(text.encode(), np.uint8).astype(np.int32) + np.int32(first)
            for text in texts
        ]

    def decode_plain(self, ids: Ids) -> str:
        plain = ids[ids >= len(self.special_texts)]
        return (plain - len(self.special_texts)).astype(np.uint8).tobytes().decode(errors="replace")

    def plain_text(self, token: int) -> str:
        return bytes([token - len(self.special_texts)]).decode(errors="backslashreplace")

    def starts_word(self, token: int) -> bool:
        byte = token - len(self.special_texts)
        return begins_word(bytes([byte]).decode(errors="replace"))

    def byte_length(self, token: int) -> int:
        return 1

    def content(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_content(
        cls, content: dict[str, Any], specials: Specials, special_texts: dict[int, str]
    ) -> "ByteTokenizer":
        return cls(specials, special_texts)


class CharacterTokenizer(Tokenizer):
    """Code points of an alphabet, in its order after the special tokens.

    Args:
      alphabet: the characters, each once.
    """

    KIND = "character"

    def __init__(self, alphabet: str, specials: Specials, special_texts: dict[int, str]):
        first = len(special_texts)
        super().__init__(
            len(alphabet) + first, specials, special_texts, lossless=specials.unk is None
        )
        self.alphabet = alphabet
        codes = _code_points(alphabet)
        self._table = np.full(0x110000, -1 if specials.unk is None else specials.unk, np.int32)
        self._table[codes] = np.arange(first, first + len(alphabet))
        self._codes = np.full(self.vocab_size, ord("\ufffd"), np.uint32)
        self._codes[first:] = codes

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> Ids:
        ids = self._table[_code_points(text)]
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            character = text[int(unknown[0])]
            raise RequestError(
                f"character {character!r} (at {unknown[0]}) is not in the tokenizer's alphabet of "
                f"{len(self.alphabet)}; train it on text that has it or set tokenizer.unk=true"
            )
        return ids

    def decode_plain(self, ids: Ids) -> str:
        return self._codes[ids].astype("<u4").tobytes().decode("utf-32-le")

    def plain_text(self, token: int) -> str:
        return chr(int(self._codes[token]))

    def content(self) -> dict[str, Any]:
        return {"alphabet": self.alphabet}

    @classmethod
    def from_content(
        cls, content: dict[str, Any], specials: Specials, special_texts: dict[int, str]
    ) -> "CharacterTokenizer":
        return cls(content["alphabet"], specials, special_texts)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


@dataclasses.dataclass(frozen=True)
class ByteConfig:
    """Bytes of UTF-8; nothing is trained and nothing is lost."""

    def build(self, texts: Iterable[str], specials: tuple[str, ...]) -> Tokenizer:
        """The tokenizer with the special tokens asked for; `texts` is not read."""
        return ByteTokenizer(*place_first(specials))


@dataclasses.dataclass(frozen=True)
class CharacterConfig:
    """The characters of the training text, sorted by code point."""

    unk: bool = knob(
        False, "whether a character that training text lacks becomes <unk>, or stops the run"
    )

    def build(self, texts: Iterable[str], specials: tuple[str, ...]) -> Tokenizer:
        """Collects the alphabet of the training text.

        Raises:
          RequestError: there is no text.
        """
        alphabet = "".join(sorted(set().union(*texts)))
        if not alphabet:
            raise RequestError("tokenizer character: the training split holds no text")
        return CharacterTokenizer(alphabet, *place_first((*specials, *("unk",) * self.unk)))
