"""Pieces: which part of which document is read together, and how pieces share the rows of
fixed-shape batches.
"""

import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int64, Integer

from ablax.config import RequestError
from ablax.data.packing import plan_packing
from ablax.data.tokenizer import Tokenizer


class Tokenized(Protocol):
    """Documents as tokens without marks: a `TokenStore`, or `tokenize`d texts."""

    @property
    def tokens(self) -> Integer[np.ndarray, " total"]: ...
    @property
    def offsets(self) -> Integer[np.ndarray, " boundaries"]: ...
    @property
    def byte_counts(self) -> Integer[np.ndarray, " documents"]: ...
    @property
    def lossless(self) -> bool: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
    """`Tokenized` documents in memory; document i is `tokens[offsets[i]:offsets[i + 1]]`."""

    tokens: Integer[np.ndarray, " total"]
    offsets: Integer[np.ndarray, " boundaries"]
    byte_counts: Integer[np.ndarray, " documents"]
    lossless: bool


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> Documents:
    """Encodes texts; lossless if every single one comes back.

    Raises:
      RequestError: if there are no texts.
    """
    if not texts:
        raise RequestError("there are no documents to score")
    encoded = [np.asarray(ids, np.int32) for ids in tokenizer.encode_batch(list(texts))]
    lossless = tokenizer.lossless and all(
        tokenizer.decode(ids) == text for ids, text in zip(encoded, texts)
    )
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])]).astype(np.int64)
    sizes = np.array([len(text.encode("utf-8")) for text in texts], np.int64)
    return Documents(np.concatenate(encoded), offsets, sizes, bool(lossless))


def frame(
    store: Tokenized, bos: int | None, eos: int | None
) -> tuple[np.ndarray, Int64[np.ndarray, " boundaries"]]:
    """All documents with their marks, one after the other: tokens int32 and the offsets of the
    documents.
    """
    lengths = np.diff(store.offsets)
    marks = (bos is not None) + (eos is not None)
    offsets = store.offsets + marks * np.arange(len(lengths) + 1)
    framed = np.empty(offsets[-1], np.int32)
    shift = offsets[:-1] - store.offsets[:-1] + (bos is not None)
    framed[np.arange(len(store.tokens)) + np.repeat(shift, lengths)] = store.tokens
    if bos is not None:
        framed[offsets[:-1]] = bos
    if eos is not None:
        framed[offsets[1:] - 1] = eos
    return framed, np.asarray(offsets, np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """Stretches of framed tokens, int64 [pieces] each.

    Attributes:
      starts: its first token among the framed tokens.
      lengths: how many tokens are read.
      counted_from: predictions before this place in the piece are context only.
    """

    starts: Int64[np.ndarray, " pieces"]
    lengths: Int64[np.ndarray, " pieces"]
    counted_from: Int64[np.ndarray, " pieces"]


def windows(offsets: np.ndarray, context_length: int, stride: int, shift: int) -> Pieces:
    """Cuts each document into windows of at most `context_length`, `stride` apart.

    Every place counts in exactly one window: all in the first, only the last `stride` in the
      others.

    Args:
      offsets: where documents begin among the framed tokens.
      shift: 1 if a document of n tokens has n - 1 predictions (the next tokens), 0 if it has n.

    Raises:
      RequestError: if the stride is not in [1, context_length], or the context is shorter than 2.
    """
    if context_length < 2:
        raise RequestError(f"context_length={context_length} must be at least 2")
    if not 1 <= stride <= context_length:
        raise RequestError(
            f"stride={stride} must be in [1, {context_length}] (the context length; equal: windows "
            "do not overlap)"
        )
    sizes = np.maximum(np.diff(offsets) - shift, 0)
    per_document = np.where(sizes > 0, 1 + -(-np.maximum(sizes - context_length, 0) // stride), 0)
    documents = np.repeat(np.arange(len(sizes)), per_document)
    first = np.cumsum(per_document) - per_document
    inside = (np.arange(len(documents)) - first[documents]) * stride
    lengths = np.minimum(sizes[documents] - inside, context_length)
    counted_from = np.where(inside > 0, context_length - stride, 0)
    return Pieces(offsets[documents] + inside, lengths, counted_from)


@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """Where the tokens of some pieces lie in a batch of rows, int64 [n] each.

    Attributes:
      at: index into the flat batch [B T].
      pieces: which piece each token belongs to.
      inside: its place in the piece.
      segment_ids: the piece's number in its row, from 1.
    """

    at: np.ndarray
    pieces: np.ndarray
    inside: np.ndarray
    segment_ids: np.ndarray


def packed(lengths: np.ndarray, row_length: int, rows: int) -> Iterator[Places]:
    """Packs pieces into rows of `row_length`, several as segments where they fit; yields `rows`
    rows at a time.
    """
    plan = plan_packing(np.asarray(lengths, np.int64), row_length, seed=0)
    for first in range(0, len(plan), rows):
        last = min(first + rows, len(plan))
        counts = plan.row_counts[first:last]
        slices = np.concatenate(
            [np.arange(s, s + c) for s, c in zip(plan.row_starts[first:last], counts)]
        )
        row_of = np.repeat(np.arange(last - first), counts)
        number = np.arange(len(slices)) - np.repeat(np.cumsum(counts) - counts, counts)
        sizes = plan.lengths[slices]
        ends = np.cumsum(sizes)
        row_begins = np.concatenate([[0], ends])[np.cumsum(counts) - counts]
        begins = ends - sizes - row_begins[row_of] + row_of * row_length
        inside = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        yield Places(
            at=np.repeat(begins, sizes) + inside,
            pieces=np.repeat(plan.documents[slices], sizes),
            inside=inside,
            segment_ids=np.repeat(number + 1, sizes),
        )


def lanes(lengths: np.ndarray, row_length: int, rows: int) -> Iterator[Places]:
    """Lays whole documents one after the other into `rows` lanes of like length; yields
    `row_length` columns at a time.

    The batches follow each other in time: a recurrent model carries its state from one to the next.
    """
    loads = [(0, lane) for lane in range(rows)]
    lane_of, begins = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    for piece in np.argsort(-lengths, kind="stable"):
        load, lane = loads[0]
        lane_of[piece], begins[piece] = lane, load
        heapq.heapreplace(loads, (load + int(lengths[piece]), lane))
    for column in range(0, max(load for load, _ in loads), row_length):
        low = np.clip(column - begins, 0, lengths)
        high = np.clip(column + row_length - begins, 0, lengths)
        here = np.flatnonzero(high > low)
        sizes = (high - low)[here]
        ends = np.cumsum(sizes)
        inside = np.arange(ends[-1]) - np.repeat(ends - sizes - low[here], sizes)
        pieces = np.repeat(here, sizes)
        yield Places(
            at=lane_of[pieces] * row_length + begins[pieces] + inside - column,
            pieces=pieces,
            inside=inside,
            segment_ids=np.ones(len(pieces), np.int64),
        )
