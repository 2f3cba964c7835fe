"""Splits: which documents, or which part of the text, are for training, validation and testing."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ablax.config import RequestError, check_seed, knob
from ablax.data.documents import Source

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How one source becomes disjoint training, validation and test documents."""

    rule: Literal["hash", "tail", "given"] = knob(
        "hash",
        "hash: each document by a hash of its content, so that its split does not change when "
        "others are added; tail: the last part of the text, cut at a character; given: the "
        "source's own splits",
    )
    validation: float = knob(0.05, "share of the documents (hash) or characters (tail)")
    test: float = knob(0.0, "share of the documents or characters; 0 for no test split")
    seed: int = knob(0, "seed of the hash")
    shared: Literal["error", "drop", "allow"] = knob(
        "error",
        "documents that occur in two splits: refuse, drop them from the earlier one, or allow them",
    )

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("validation", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise RequestError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        if self.validation + self.test >= 1:
            raise RequestError(
                f"validation={self.validation} and test={self.test} leave nothing for training; "
                "lower one of them"
            )


class Subset(Source):
    """Some documents of another source.

    Args:
      source: the documents.
      rows: int64 [n], their numbers in `source`.
    """

    def __init__(self, source: Source, rows: np.ndarray):
        self._source, self._rows = source, rows
        self.skipped = source.skipped
        self.digests = source.digests[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:
        return self._source[int(self._rows[index])]

    def name(self, index: int) -> str:
        return self._source.name(int(self._rows[index]))


class Slice(Source):
    """The characters from `start` to `stop` of all documents of another source laid end to end; the
    documents at both ends are cut.

    Args:
      source: the documents.
      offsets: int64 [documents + 1], where each document begins in characters.
      start, stop: in characters.
    """

    def __init__(self, source: Source, offsets: np.ndarray, start: int, stop: int):
        self._source, self._offsets = source, offsets
        self._start, self._stop = start, stop
        self._first = int(np.searchsorted(offsets, start, "right")) - 1
        self._count = int(np.searchsorted(offsets, stop, "left")) - self._first
        if start == stop:
            self._count = 0
        self.skipped = source.skipped

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        document = self._document(index)
        begin = int(self._offsets[document])
        return self._source[document][max(0, self._start - begin) : self._stop - begin]

    def name(self, index: int) -> str:
        return self._source.name(self._document(index))

    def _document(self, index: int) -> int:
        if not -self._count <= index < self._count:
            raise IndexError(f"document {index} of {self._count}")
        return self._first + index % self._count


def open_splits(
    source_config: Any, split_config: SplitConfig, cache: Path, offline: bool
) -> dict[str, Source]:
    """Opens a source and splits it.

    Args:
      source_config: a config of `SOURCES`, or a user's own with
        `build(cache, offline) -> dict[split, Source]`.
      split_config: the rule.
      cache: where prepared datasets are kept.
      offline: forbids the network.

    Returns:
      `train`, `validation` and, where asked for or given, `test`.

    Raises:
      RequestError: the source cannot be read, a split is empty, or two splits share documents.
    """
    given = source_config.build(cache, offline)
    if split_config.rule == "given":
        splits = _given(given)
    else:
        _refuse_unread(source_config, split_config.rule)
        divide = by_hash if split_config.rule == "hash" else by_tail
        splits = divide(given["train"], split_config)
    splits = _disjoint(splits, split_config.shared)
    for name, source in splits.items():
        if not len(source):
            raise RequestError(_empty(name, split_config, len(given["train"])))
    return splits


def _refuse_unread(source_config: Any, rule: str) -> None:
    for field in dataclasses.fields(source_config):
        held_out = field.name.startswith(("validation_", "test_"))
        if held_out and getattr(source_config, field.name) != field.default:
            raise RequestError(
                f"source.{field.name} is read only with split.rule=given, not {rule}; set that or "
                "leave it out"
            )


def _given(given: Mapping[str, Source]) -> dict[str, Source]:
    if "validation" not in given:
        raise RequestError(
            "split.rule=given: the source has no validation split of its own; name one "
            "(validation_glob, validation_split) or set split.rule=hash"
        )
    return {name: given[name] for name in SPLITS if name in given}


def by_hash(source: Source, config: SplitConfig) -> dict[str, Source]:
    """Each document goes where the SHA-256 of the seed and its content sends it; equal documents
    go the same way."""
    salt = config.seed.to_bytes(8, "little", signed=True)
    hashes = [hashlib.sha256(salt + row.tobytes()).digest()[:8] for row in source.digests]
    position = np.array([int.from_bytes(h, "little") / 2**64 for h in hashes])
    test = position < config.test
    validation = ~test & (position < config.test + config.validation)
    masks = {"train": ~test & ~validation, "validation": validation, "test": test}
    if config.test == 0:
        del masks["test"]
    return {name: Subset(source, np.flatnonzero(mask)) for name, mask in masks.items()}


def by_tail(source: Source, config: SplitConfig) -> dict[str, Source]:
    """The first characters for training, the next for validation, the last for testing: of n
    characters, int(n x share) are for training (nanoGPT's data/shakespeare_char/prepare.py)."""
    offsets = np.cumsum([0, *map(len, source)], dtype=np.int64)
    total = int(offsets[-1])
    # Rounded, because 1 - 0.05 - 0.05 is a little less than 0.9 in floating point.
    cuts = [0, int(total * round(1 - config.validation - config.test, 12))]
    cuts += [int(total * round(1 - config.test, 12)), total]
    names = SPLITS if config.test else SPLITS[:2]
    return {
        name: Slice(source, offsets, start, stop)
        for name, start, stop in zip(names, cuts, cuts[1:])
    }


def _disjoint(splits: dict[str, Source], shared: str) -> dict[str, Source]:
    if shared == "allow":
        return splits
    names = list(splits)
    for number, name in enumerate(names):
        for later in names[number + 1 :]:
            rows = _shared_rows(splits[name], splits[later])
            if not len(rows):
                continue
            if shared == "drop":
                keep = np.setdiff1d(np.arange(len(splits[name])), rows)
                splits[name] = Subset(splits[name], keep)
                continue
            raise RequestError(
                f"{len(rows)} documents of {name} are also in {later}, e.g. "
                f"{splits[name].name(int(rows[0]))}; set split.shared=drop (takes them out of "
                f"{name}) or split.shared=allow"
            )
    return splits


def _shared_rows(source: Source, other: Source) -> np.ndarray:
    """Documents of `source`, blank ones apart, that `other` holds too."""
    one, two = (np.ascontiguousarray(s.digests).view("V16").ravel() for s in (source, other))
    rows = np.flatnonzero(np.isin(one, two))
    blank = {key for key in set(one[rows].tolist()) if not source[_first(one, key)].strip()}
    return np.array([row for row in rows if one[row].tobytes() not in blank], np.int64)


def _first(keys: np.ndarray, key: bytes) -> int:
    return int(np.flatnonzero(keys == np.void(key))[0])


def _empty(name: str, config: SplitConfig, documents: int) -> str:
    if config.rule == "given":
        return f"the {name} split is empty; name other files or set split.rule=hash"
    advice = "split.rule=tail" if config.rule == "hash" else "a longer text"
    return (
        f"the {name} split is empty: {documents} documents, split.validation={config.validation}, "
        f"split.test={config.test}; set larger shares, another split.seed or {advice}"
    )
