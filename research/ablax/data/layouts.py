"""Layouts: how the documents of a token store become rows of T + 1 tokens.

A row is a dict of int32 arrays [T + 1]: `tokens`, `positions` and `segment_ids` (0 = padding,
segments from 1). An objective makes `tokens = row[:-1]`, `targets = row[1:]` of it; a target counts
only inside its own segment.

Every layout has the same number of rows in each epoch. Row i of a layout is row `i % len(layout)`
of epoch `i // len(layout)`, found in O(log documents).
"""

import functools
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Int32

from ablax.config import RequestError
from ablax.data.building import Progress
from ablax.data.checks import check_rows, too_short
from ablax.data.joined import JoinedTokens
from ablax.data.packing import load_plan
from ablax.data.store import TokenStore, cache_root

Row = dict[str, Int32[np.ndarray, " T+1"]]


class Layout(Protocol):
    """What the loader needs.

    Attributes:
      shuffled: whether the loader draws the rows of an epoch in a seeded random order.
      position_limit: every position is smaller.
      segment_limit: every segment id is smaller.
    """

    shuffled: bool
    position_limit: int
    segment_limit: int

    @property
    def store(self) -> TokenStore: ...
    @property
    def sequence_length(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Row: ...
    def documents(self, index: int, /) -> np.ndarray:
        """The documents of a row, by their numbers in the store, rising."""
        ...


class Windows:
    """Rows over the joined documents, whose boundaries nothing but their marks shows (as GPT-2,
    nanoGPT).

    Row k holds tokens k T to (k + 1) T of the joined documents, both included: every token is
    predicted at most once an epoch, and all are but the first and a tail shorter than T. With
    `phase`, epochs after the first start at a seeded offset in [0, T) instead of 0 (the rows wrap
    around at the end), so that over epochs a token is seen after contexts of different lengths.
    """

    shuffled = True
    segment_limit = 2

    def __init__(
        self,
        store: TokenStore,
        sequence_length: int,
        bos: int | None = None,
        eos: int | None = None,
        *,
        phase: bool = True,
        seed: int = 0,
    ):
        check_rows(store, sequence_length, bos, eos)
        self.store, self.sequence_length = store, sequence_length
        self.position_limit = sequence_length + 1
        self._stream = JoinedTokens(store, bos, eos)
        self._rows = (len(self._stream) - 1) // sequence_length
        if self._rows < 1:
            raise too_short(store, len(self._stream), sequence_length + 1, "data.sequence_length")
        self._phase, self._seed = phase, seed
        self._positions = _constant(np.arange(sequence_length + 1))
        self._segment_ids = _constant(np.ones(sequence_length + 1))

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Row:
        tokens = self._stream.read(self._start(index), self.sequence_length + 1)
        return {"tokens": tokens, "positions": self._positions, "segment_ids": self._segment_ids}

    def documents(self, index: int) -> np.ndarray:
        return self._stream.documents(self._start(index), self.sequence_length + 1)

    def _start(self, index: int) -> int:
        epoch, row = divmod(index, self._rows)
        return (row * self.sequence_length + self.phase_of(epoch)) % len(self._stream)

    def phase_of(self, epoch: int) -> int:
        """The joined position at which the epoch's first row starts."""
        if not self._phase or epoch == 0:
            return 0
        return _draw(self._seed, epoch) % self.sequence_length


class Packed:
    """Whole documents as segments `bos document eos`, several in a row, by a plan computed once for
    all epochs.

    A document longer than T + 1 tokens is cut into pieces that overlap by one token. Positions
    restart at 0 in each segment; what a row has left is padding, filled with token 0 and segment 0.

    Segments do not see each other, so it does not matter who shares a row, and one plan for all
    epochs keeps their numbers of rows equal; the loader shuffles the rows.
    """

    shuffled = True

    def __init__(
        self,
        store: TokenStore,
        sequence_length: int,
        bos: int | None = None,
        eos: int | None = None,
        *,
        seed: int = 0,
        root: Path | None = None,
        progress: Progress | None = None,
    ):
        check_rows(store, sequence_length, bos, eos)
        self.store, self.sequence_length = store, sequence_length
        self._bos, self._eos = bos, eos
        has_bos, has_eos = bos is not None, eos is not None
        self._document_lengths = np.diff(store.offsets) + has_bos + has_eos
        self.plan = load_plan(
            self._document_lengths,
            sequence_length + 1,
            seed,
            key=f"{store.fingerprint} {has_bos} {has_eos}",
            root=cache_root() if root is None else Path(root),
            progress=progress,
        )
        self.position_limit = sequence_length + 1
        self.segment_limit = int(self.plan.row_counts.max()) + 1
        self._arange = np.arange(sequence_length + 2, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Row:
        plan, offsets, slices = self.plan, self.store.offsets, self._slices(index)
        documents, starts, lengths = (
            plan.documents[slices],
            plan.starts[slices],
            plan.lengths[slices],
        )
        ends = np.cumsum(lengths)
        begins, used = ends - lengths, int(ends[-1])
        row: Row = {name: np.zeros(self.sequence_length + 1, np.int32) for name in _ROW}
        tokens, places = row["tokens"], self._arange[:used]
        row["positions"][:used] = places - np.repeat(begins, lengths)
        row["segment_ids"][:used] = np.repeat(self._arange[1 : len(ends) + 1], lengths)
        shift = offsets[documents] + starts - begins - (self._bos is not None)
        # Where a mark belongs, this index may lie one outside the document: the mark overwrites it.
        tokens[:used] = self.store.tokens.take(places + np.repeat(shift, lengths), mode="clip")
        if self._bos is not None:
            tokens[begins[starts == 0]] = self._bos
        if self._eos is not None:
            tokens[ends[starts + lengths == self._document_lengths[documents]] - 1] = self._eos
        return row

    def documents(self, index: int) -> np.ndarray:
        return np.unique(self.plan.documents[self._slices(index)])

    def _slices(self, index: int) -> slice:
        index %= len(self.plan)
        first = int(self.plan.row_starts[index])
        return slice(first, first + int(self.plan.row_counts[index]))


class Streams:
    """B lanes of consecutive rows: row b of step s continues row b of step s - 1 (for recurrent
    models).

    Lane b reads its own contiguous part of the joined documents; row i belongs to lane `i % B`.
    Positions count from the start of the lane, so a position of 0, where a recurrent model forgets,
    comes once an epoch. Every epoch reads the same lanes again; the joined documents' tail, of
    fewer than B T + 1 tokens, is left out.
    """

    shuffled = False
    segment_limit = 2

    def __init__(
        self,
        store: TokenStore,
        sequence_length: int,
        batch_size: int,
        bos: int | None = None,
        eos: int | None = None,
    ):
        check_rows(store, sequence_length, bos, eos)
        self.store, self.sequence_length, self.batch_size = store, sequence_length, batch_size
        self._stream = JoinedTokens(store, bos, eos)
        self._steps = (len(self._stream) - 1) // (batch_size * sequence_length)
        if self._steps < 1:
            need = batch_size * sequence_length + 1
            raise too_short(
                store, len(self._stream), need, "training.batch_size or data.sequence_length"
            )
        self.position_limit = self._steps * sequence_length + 1
        if self.position_limit > 2**31:
            raise RequestError(
                f"a lane has {self.position_limit} tokens, at most 2^31: raise training.batch_size"
            )
        self._arange = np.arange(sequence_length + 1, dtype=np.int32)
        self._segment_ids = _constant(np.ones(sequence_length + 1))

    def __len__(self) -> int:
        return self._steps * self.batch_size

    def __getitem__(self, index: int) -> Row:
        step = index % len(self) // self.batch_size
        return {
            "tokens": self._stream.read(self._start(index), self.sequence_length + 1),
            "positions": self._arange + np.int32(step * self.sequence_length),
            "segment_ids": self._segment_ids,
        }

    def documents(self, index: int) -> np.ndarray:
        return self._stream.documents(self._start(index), self.sequence_length + 1)

    def _start(self, index: int) -> int:
        step, lane = divmod(index % len(self), self.batch_size)
        return (lane * self._steps + step) * self.sequence_length


def make_layout(
    kind: Literal["windows", "packed", "streams"],
    store: TokenStore,
    *,
    sequence_length: int,
    bos: int | None = None,
    eos: int | None = None,
    batch_size: int | None = None,
    phase: bool = True,
    seed: int = 0,
    root: Path | None = None,
    progress: Progress | None = None,
) -> Windows | Packed | Streams:
    """The layout of this kind over a store.

    Args:
      sequence_length: T; rows have T + 1 tokens.
      bos, eos: ids of the document marks, or None for none.
      batch_size: B, the global batch's rows; needed by `streams` only.
      phase: `windows` only, see there.
      seed: of the packing plan and of the windows' phase.
      root: the cache for packing plans; `cache_root()` when None.
      progress: called while another process computes the packing plan.

    Raises:
      RequestError: if the kind is unknown, a mark is not in the vocabulary, or the store is shorter
        than one row (one step, for `streams`).
    """
    marks = {"bos": bos, "eos": eos}
    match kind:
        case "windows":
            return Windows(store, sequence_length, **marks, phase=phase, seed=seed)
        case "packed":
            return Packed(store, sequence_length, **marks, seed=seed, root=root, progress=progress)
        case "streams":
            if batch_size is None:
                raise RequestError("layout 'streams' needs batch_size, its number of lanes")
            return Streams(store, sequence_length, batch_size, **marks)
    raise RequestError(f"layout {kind!r} does not exist; choose windows, packed or streams")


@functools.lru_cache(maxsize=8)
def _draw(seed: int, epoch: int) -> int:
    """A number for each epoch; kept, because drawing it takes longer than reading a short row."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


_ROW = ("tokens", "positions", "segment_ids")


def _constant(values: np.ndarray) -> Int32[np.ndarray, " T+1"]:
    array = values.astype(np.int32)
    array.flags.writeable = False  # shared by all rows
    return array
