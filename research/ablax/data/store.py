"""The token store: every document of a source tokenised once, into flat memory-mapped arrays."""

import array
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64, Integer

from ablax.config import RequestError
from ablax.data.building import Progress, build_once
from ablax.data.documents import Source
from ablax.data.tokenizer import Tokenizer

_FORMAT = 1
_CHUNK_CHARACTERS = (
    4_000_000  # text handed to the tokenizer's threads at a time; bounds the builder's memory
)
_CHUNK_DOCUMENTS = 4096


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """The tokens of all documents of a source, one after the other, without document marks.

    Attributes:
      tokens: uint16 (vocabulary of at most 65,536) or uint32 [total], memory-mapped.
      offsets: int64 [documents + 1], memory-mapped; document i is `tokens[offsets[i]:offsets[i +
        1]]`.
      byte_counts: int64 [documents], memory-mapped: the documents' original lengths in UTF-8 bytes.
      fingerprint: of the source and the tokenizer together.
      vocab_size: V; every token is smaller.
      round_trip_mismatches: documents with decode(encode(text)) != text; None when the tokenizer
        does not claim to be lossless and nothing was checked.
      first_mismatch: the name of the first such document, or None.
    """

    tokens: Integer[np.ndarray, " total"]
    offsets: Int64[np.ndarray, " offsets"]
    byte_counts: Int64[np.ndarray, " documents"]
    fingerprint: str
    vocab_size: int
    round_trip_mismatches: int | None
    first_mismatch: str | None

    def __len__(self) -> int:
        return len(self.byte_counts)

    @property
    def lossless(self) -> bool:
        """True if each document's text comes back from its tokens: bits per byte are exact."""
        return self.round_trip_mismatches == 0

    def document(self, index: int) -> Int32[np.ndarray, " n"]:
        """The tokens of one document, without document marks."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].astype(np.int32)


def cache_root() -> Path:
    """Where caches lie: `$ABLAX_CACHE`, else `ablax` in the XDG cache folder."""
    if named := os.environ.get("ABLAX_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ablax"


def build_store(
    source: Source,
    tokenizer: Tokenizer,
    root: Path | None = None,
    *,
    progress: Progress | None = None,
) -> TokenStore:
    """Opens the store of (source, tokenizer) under `root`, after building it when it is missing or
    damaged.

    Among all processes that share `root` one builds; the others wait. Needs no network.

    Args:
      source: the documents.
      tokenizer: turns them into tokens, in parallel in `encode_batch`.
      root: the cache; `cache_root()` when None.
      progress: called with (documents done, documents in all).

    Raises:
      RequestError: if the source is empty, has no tokens or holds text that is not Unicode, or if
        the cache cannot be written.
    """
    key = json.dumps([_FORMAT, source.fingerprint, tokenizer.fingerprint])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:32]
    folder = (cache_root() if root is None else Path(root)) / "tokens" / fingerprint

    def build(temporary: Path, report: Progress) -> None:
        meta = {"format": _FORMAT, "fingerprint": fingerprint}
        meta |= {"source": source.fingerprint, "tokenizer": tokenizer.fingerprint}
        meta |= _tokenise(source, tokenizer, temporary, report)
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")

    build_once(folder, build, _is_whole, progress)
    return open_store(folder)


def open_store(folder: Path) -> TokenStore:
    """Maps a built store into memory.

    Raises:
      RequestError: if it is missing, or its files do not have the sizes that its meta.json states.
    """
    folder = Path(folder)
    if not _is_whole(folder):
        raise RequestError(
            f"{folder} is not a whole token store: delete it and run `ablax prepare` again"
        )
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    arrays = {
        # A plain view: slicing an np.memmap costs several times more than slicing an ndarray.
        name: np.asarray(np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r", shape=(length,)))
        for name, (dtype, length) in meta["arrays"].items()
    }
    return TokenStore(
        **arrays,
        fingerprint=meta["fingerprint"],
        vocab_size=meta["vocab_size"],
        round_trip_mismatches=meta["round_trip_mismatches"],
        first_mismatch=meta["first_mismatch"],
    )


def _is_whole(folder: Path) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return meta["format"] == _FORMAT and all(
            (folder / f"{name}.bin").stat().st_size == np.dtype(dtype).itemsize * length
            for name, (dtype, length) in meta["arrays"].items()
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return False


def _tokenise(source: Source, tokenizer: Tokenizer, folder: Path, report: Progress) -> dict:
    """Writes the three arrays to `folder` and returns what meta.json says about them."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    lengths, byte_counts = array.array("q"), array.array("q")
    mismatches, first_mismatch = 0, None
    report(0, len(source))
    with (folder / "tokens.bin").open("wb") as file:
        for names, texts, chunk_bytes in _chunks(source):
            for name, text, ids in zip(names, texts, tokenizer.encode_batch(texts), strict=True):
                ids = np.asarray(ids, np.int64)
                if ids.size and not (ids.min() >= 0 and ids.max() < tokenizer.vocab_size):
                    wrong = ids.min() if ids.min() < 0 else ids.max()
                    raise RequestError(
                        f"document {name} became token {wrong}, outside the tokenizer's vocabulary "
                        f"of {tokenizer.vocab_size}: build or load the tokenizer again"
                    )
                if tokenizer.lossless and tokenizer.decode(ids.astype(np.int32)) != text:
                    mismatches += 1
                    first_mismatch = first_mismatch or name
                file.write(ids.astype(dtype).tobytes())
                lengths.append(len(ids))
            byte_counts.extend(chunk_bytes)
            report(len(lengths), len(source))
    if not sum(lengths):
        raise RequestError(
            f"the source has {len(source)} documents and no tokens: check its files and fields"
        )
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")
    offsets.tofile(folder / "offsets.bin")
    np.asarray(byte_counts, "<i8").tofile(folder / "byte_counts.bin")
    arrays = {"tokens": (dtype.str, int(offsets[-1])), "offsets": ("<i8", len(offsets))}
    return {
        "arrays": {**arrays, "byte_counts": ("<i8", len(byte_counts))},
        "documents": len(lengths),
        "bytes": sum(byte_counts),
        "vocab_size": tokenizer.vocab_size,
        "round_trip_mismatches": mismatches if tokenizer.lossless else None,
        "first_mismatch": first_mismatch,
    }


def _chunks(source: Source) -> Iterator[tuple[list[str], list[str], list[int]]]:
    """Names, texts and UTF-8 byte counts of consecutive documents, in bounded amounts of text."""
    names, texts, byte_counts, characters = [], [], [], 0
    for index in range(len(source)):
        text, name = source[index], source.name(index)
        try:
            byte_counts.append(len(text.encode("utf-8")))
        except UnicodeEncodeError as error:
            raise RequestError(
                f"document {name} holds a lone surrogate at character {error.start}, "
                "which is not Unicode text: fix it"
            ) from error
        names.append(name)
        texts.append(text)
        characters += len(text)
        if characters >= _CHUNK_CHARACTERS or len(texts) >= _CHUNK_DOCUMENTS:
            yield names, texts, byte_counts
            names, texts, byte_counts, characters = [], [], [], 0
    if texts:
        yield names, texts, byte_counts
