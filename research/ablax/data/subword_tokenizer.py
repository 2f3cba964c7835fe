"""A tokenizer of the `tokenizers` library behind our ids."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from ablax.data.specials import Specials
from ablax.data.tokenizer import Ids, Tokenizer, begins_word


def byte_characters() -> dict[str, int]:
    """The printable character by which GPT-2's byte-level vocabularies write each byte (Radford et
    al. 2019, encoder.py): itself where it is printable Latin-1, else the next free one from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + number): byte for number, byte in enumerate(others)}


BYTES = byte_characters()


class LibraryTokenizer(Tokenizer):
    """Ours: the special tokens come first and the library does not know them, so no text and no
    merge can produce one; the library's ids follow, its unk being ours. Imported: ids are its own.

    Args:
      library: the tokenizer. It must add nothing around a text.
      specials: their ids.
      special_texts: how they are written.
      imported: whether `library` holds the special tokens and keeps its ids.
      vocab_size: V, if a model has room for more ids than the tokenizer makes; None = as many.
    """

    KIND = "library"

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        specials: Specials,
        special_texts: dict[int, str],
        imported: bool,
        vocab_size: int | None = None,
    ):
        self._library = library
        self.imported = imported
        whole = json.loads(library.to_str())
        self._model = whole["model"]["type"]
        self._byte_level = "ByteLevel" in json.dumps(whole["decoder"])
        vocabulary = library.get_vocab(with_added_tokens=True)
        if imported:
            self._ours = np.arange(max(vocabulary.values()) + 1, dtype=np.int32)
            size = len(self._ours)
        else:
            self._ours, size = _ids_after_specials(vocabulary, specials, len(special_texts))
        self._made, size = size, max(size, vocab_size or 0)
        self._theirs = np.full(size, -1, np.int32)
        self._theirs[self._ours] = np.arange(len(self._ours))
        super().__init__(size, specials, special_texts, lossless=is_lossless(whole))
        # Text that spells a special token of an imported vocabulary is text.
        library.encode_special_tokens = True
        library.no_padding()
        library.no_truncation()

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._ours[np.array(encoding.ids, np.int32)] for encoding in encodings]

    def decode_plain(self, ids: Ids) -> str:
        theirs = self._theirs[ids]
        return self._library.decode(theirs[theirs >= 0].tolist(), skip_special_tokens=False)

    def plain_text(self, token: int) -> str:
        piece = self._piece(token)
        if self._byte_level and all(character in BYTES for character in piece):
            return bytes(BYTES[c] for c in piece).decode(errors="backslashreplace")
        return piece.replace("\u2581", " ") if self._model == "Unigram" else piece

    def starts_word(self, token: int) -> bool:
        piece = self._piece(token)
        if self._model in ("WordLevel", "WordPiece"):
            return not piece.startswith("##")
        if self._byte_level and all(character in BYTES for character in piece):
            piece = bytes(BYTES[c] for c in piece).decode(errors="replace")
        return begins_word(piece)

    def byte_length(self, token: int) -> int:
        piece = self._piece(token)
        if self._byte_level and all(character in BYTES for character in piece):
            return len(piece)
        return super().byte_length(token)

    def _piece(self, token: int) -> str:
        theirs = int(self._theirs[token])
        piece = self._library.id_to_token(theirs) if theirs >= 0 else None
        return piece or ""

    def json_text(self) -> str:
        """The tokenizer.json of the library `tokenizers`."""
        return self._library.to_str()

    def content(self) -> dict[str, Any]:
        room = {"vocab_size": self.vocab_size} if self.vocab_size > self._made else {}
        return {"imported": self.imported, "library": json.loads(self.json_text()), **room}

    @classmethod
    def from_content(
        cls, content: dict[str, Any], specials: Specials, special_texts: dict[int, str]
    ) -> "LibraryTokenizer":
        library = tokenizers.Tokenizer.from_str(json.dumps(content["library"]))
        return cls(library, specials, special_texts, content["imported"], content.get("vocab_size"))


def _ids_after_specials(
    vocabulary: dict[str, int], specials: Specials, first: int
) -> tuple[np.ndarray, int]:
    """Our id of each of the library's, and V. The library's `<unk>`, if it has one, comes first."""
    count = len(vocabulary)
    if "<unk>" in vocabulary and specials.unk is not None and vocabulary["<unk>"] == 0:
        ours = np.arange(first - 1, first + count - 1, dtype=np.int32)
        ours[0] = specials.unk
        return ours, first + count - 1
    return np.arange(first, first + count, dtype=np.int32), first + count


def is_lossless(whole: dict[str, Any]) -> bool:
    """Whether every text comes back: byte-level BPE over all 256 bytes, with nothing normalised, no
    space put before the text, and no piece removed.

    Args:
      whole: the library's tokenizer.json.
    """
    model, before, after = whole["model"], whole["pre_tokenizer"], whole["decoder"]
    steps = (
        [before]
        if before and before["type"] != "Sequence"
        else (before or {}).get("pretokenizers", [])
    )
    kept = all(
        not step["add_prefix_space"]
        if step["type"] == "ByteLevel"
        else step["type"] in ("Split", "Digits", "Punctuation")
        and step.get("behavior") != "Removed"
        for step in steps
    )
    return (
        model["type"] == "BPE"
        and not whole["normalizer"]
        and any(step["type"] == "ByteLevel" for step in steps)
        and kept
        and bool(after)
        and after["type"] == "ByteLevel"
        and set(pre_tokenizers.ByteLevel.alphabet()) <= set(model["vocab"])
    )
