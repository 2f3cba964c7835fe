"""The tokenizer: text to int32 ids and back."""

import abc
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int32, Int64

from ablax.config import RequestError
from ablax.data.specials import Specials

FILE = "ablax_tokenizer.json"

Ids = Int32[np.ndarray, " n"]


class Tokenizer(abc.ABC):
    """What every tokenizer can do. A subclass adds `encode_batch`, its inverse `decode_plain`, and
    its content as JSON.

    Args:
      vocab_size: V, special tokens included.
      specials: ids of the special tokens.
      special_texts: how each of them is written.
      lossless: whether decode(encode(text)) == text for every text that can be encoded.
    """

    KIND: ClassVar[str]

    def __init__(
        self, vocab_size: int, specials: Specials, special_texts: dict[int, str], lossless: bool
    ):
        self.vocab_size = vocab_size
        self.specials = specials
        self.special_texts = special_texts
        self.lossless = lossless

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without special tokens around it. Text that spells a special token is
        text like any other.

        Raises:
          RequestError: a character is not in the vocabulary and there is no unk.
        """

    @abc.abstractmethod
    def decode_plain(self, ids: Ids) -> str:
        """Text of ids of which none is special (unk may be, where the vocabulary uses it)."""

    @abc.abstractmethod
    def plain_text(self, token: int) -> str:
        """A token that is not special, for people to read."""

    @abc.abstractmethod
    def content(self) -> dict[str, Any]:
        """All that `from_content` needs, as JSON values."""

    @classmethod
    @abc.abstractmethod
    def from_content(
        cls, content: dict[str, Any], specials: Specials, special_texts: dict[int, str]
    ) -> "Tokenizer":
        """The inverse of `content`."""

    def encode(self, text: str) -> Ids:
        """Ids of one text; see `encode_batch`."""
        return self.encode_batch([text])[0]

    def decode(self, ids: Sequence[int] | np.ndarray, skip_specials: bool = True) -> str:
        """The text of some ids.

        Bytes that are not UTF-8, as in the middle of a character, become U+FFFD; to decode while
        ids arrive, decode all of them and hold back what ends in U+FFFD.

        Args:
          ids: int [n].
          skip_specials: leave special tokens out instead of writing them, e.g. `<eos>`. What stands
            for unknown text is always written.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        array = np.asarray(ids, np.int32).reshape(-1)
        if array.size and not 0 <= array.min() <= array.max() < self.vocab_size:
            raise ValueError(
                f"ids {array.min()} to {array.max()}, outside the vocabulary of {self.vocab_size}"
            )
        special = self._skipped[array]
        if skip_specials or not special.any():
            return self.decode_plain(array[~special])
        cuts = np.flatnonzero(np.diff(special.astype(np.int8), prepend=0, append=0) != 0)
        parts = np.split(array, cuts)
        return "".join(
            "".join(self.special_texts[int(token)] for token in part)
            if part.size and self._skipped[part[0]]
            else self.decode_plain(part)
            for part in parts
        )

    def token_text(self, token: int) -> str:
        """One token for people to read; a part of a character as `\\xe2`, an inner piece of a word
        as its vocabulary marks it.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"id {token} is outside a vocabulary of {self.vocab_size}")
        return self.special_texts.get(token) or self.plain_text(token)

    def word_starts(self) -> Bool[np.ndarray, " V"]:
        """True for tokens that begin a word, for masking of whole words.

        A token alone does not always tell. WordPiece says it (`##`); words are words; elsewhere a
        token begins a word when its first character is no letter, digit or underscore, so that
        `" the"` begins one, punctuation stands alone, and letters and parts of characters continue:
        a word right after a line end hangs on to the line end. Special tokens stand alone.
        """
        starts = (special or self.starts_word(i) for i, special in enumerate(self._special))
        return np.fromiter(starts, bool, self.vocab_size)

    def starts_word(self, token: int) -> bool:
        """`word_starts` of one token that is not special."""
        return begins_word(self.plain_text(token))

    def byte_lengths(self) -> Int64[np.ndarray, " V"]:
        """Bytes of UTF-8 that each token stands for, none for special tokens; a lossless tokenizer's add up to the
        text's."""
        lengths = (0 if special else self.byte_length(i) for i, special in enumerate(self._special))
        return np.fromiter(lengths, np.int64, self.vocab_size)

    def byte_length(self, token: int) -> int:
        """`byte_lengths` of one token that is not special."""
        return len(self.plain_text(token).encode())

    @functools.cached_property
    def _special(self) -> np.ndarray:
        special = np.zeros(self.vocab_size, bool)
        special[list(self.special_texts)] = True
        return special

    @functools.cached_property
    def _skipped(self) -> np.ndarray:
        """Special tokens that stand for no text."""
        skipped = self._special.copy()
        if self.specials.unk is not None:
            skipped[self.specials.unk] = False
        return skipped

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what `save` writes."""
        return hashlib.sha256(self._serialised().encode()).hexdigest()

    def _serialised(self) -> str:
        whole = {
            "kind": self.KIND,
            "specials": vars(self.specials),
            "special_texts": {str(token): text for token, text in self.special_texts.items()},
            "content": self.content(),
        }
        return json.dumps(whole, sort_keys=True, indent=1)

    def save(self, folder: Path | str) -> None:
        """Writes one JSON file into a folder, which is made if need be."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / FILE).write_text(self._serialised(), encoding="utf-8")


def begins_word(text: str) -> bool:
    """Whether a token of this text begins a word: its first character is no letter, digit,
    underscore or part of a character."""
    return not (text[:1].isalnum() or text[:1] in ("_", "\ufffd"))


def read_tokenizer(folder: Path | str, kinds: dict[str, type[Tokenizer]]) -> Tokenizer:
    """Reads what `save` wrote.

    Raises:
      RequestError: the file is missing, damaged or of an unknown kind.
    """
    path = Path(folder) / FILE
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        specials = dict(whole["specials"])
        if specials["sentinels"] is not None:
            specials["sentinels"] = tuple(specials["sentinels"])
        texts = {int(token): text for token, text in whole["special_texts"].items()}
        kind = kinds[whole["kind"]]
        return kind.from_content(whole["content"], Specials(**specials), texts)
    except FileNotFoundError:
        raise RequestError(f"{folder} holds no tokenizer: {FILE} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{path} is not a tokenizer of Ablax ({error!r}); save it again"
        ) from error
