"""The packing plan: which pieces of which documents share a row, computed once and memory-mapped.

Best-fit decreasing over the histogram of lengths (as Krell et al. 2021, "Efficient Sequence Packing
without Cross-contamination", section 3): rows that are filled alike are handled as one group, so
the cost depends on the row's length and not on the number of documents.
"""

import bisect
import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from ablax.data.building import Progress, build_once

_FORMAT = 1
_ARRAYS = ("row_starts", "row_counts", "documents", "starts", "lengths")

Runs = tuple[tuple[int, int], ...]  # (length, how many pieces of that length), from the longest


@dataclasses.dataclass(frozen=True)
class PackingPlan:
    """Row r holds the slices `row_starts[r] : row_starts[r] + row_counts[r]`, in this order.

    Attributes:
      row_starts, row_counts: int64 [rows].
      documents, starts, lengths: int64 [slices]; a slice is `document[start : start + length]`,
        where a document counts with its marks.
    """

    row_starts: Int64[np.ndarray, " rows"]
    row_counts: Int64[np.ndarray, " rows"]
    documents: Int64[np.ndarray, " slices"]
    starts: Int64[np.ndarray, " slices"]
    lengths: Int64[np.ndarray, " slices"]

    def __len__(self) -> int:
        return len(self.row_starts)

    def fill(self, capacity: int) -> float:
        """The share of the rows' places that hold a token."""
        return float(self.lengths.sum() / (len(self) * capacity))


def plan_packing(
    document_lengths: Int64[np.ndarray, " documents"], capacity: int, seed: int
) -> PackingPlan:
    """Packs documents into rows of `capacity` tokens; the same arguments give the same plan.

    A document longer than a row is cut into pieces that overlap by one token, so that each of its
    tokens but the first is the target of exactly one prediction. Documents without tokens take no
    part. The seed decides which pieces of equal length share a row, and the order of the rows.
    """
    documents, starts, lengths = _pieces(document_lengths, capacity)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(lengths))
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    counts = np.bincount(lengths, minlength=capacity + 1)
    next_piece = np.concatenate([[0], np.cumsum(counts)])
    order, row_counts = [documents[:0]], [documents[:0]]  # there may be no pieces at all
    for runs, rows in _best_fit(counts, capacity):
        columns = []
        for length, per_row in runs:
            first = next_piece[length]
            next_piece[length] += rows * per_row
            columns.append(by_length[first : first + rows * per_row].reshape(rows, per_row))
        order.append(np.concatenate(columns, axis=1).ravel())
        row_counts.append(np.full(rows, sum(per_row for _, per_row in runs)))
    order, row_counts = np.concatenate(order), np.concatenate(row_counts)
    row_starts = np.cumsum(row_counts) - row_counts
    row_order = rng.permutation(len(row_counts))
    return PackingPlan(
        row_starts[row_order],
        row_counts[row_order],
        documents[order],
        starts[order],
        lengths[order],
    )


def load_plan(
    document_lengths: Int64[np.ndarray, " documents"],
    capacity: int,
    seed: int,
    *,
    key: str,
    root: Path,
    progress: Progress | None = None,
) -> PackingPlan:
    """The plan from the cache under `root`, computed there first when it is missing or damaged.

    Args:
      key: names whatever decides `document_lengths` (the store and the document marks).
    """
    text = json.dumps([_FORMAT, key, capacity, seed])
    folder = root / "packing" / hashlib.sha256(text.encode()).hexdigest()[:32]

    def build(temporary: Path, report: Progress) -> None:
        plan = plan_packing(document_lengths, capacity, seed)
        for name in _ARRAYS:
            np.save(temporary / f"{name}.npy", getattr(plan, name))

    build_once(folder, build, lambda folder: _open(folder) is not None, progress)
    plan = _open(folder)
    assert plan is not None
    return plan


def _open(folder: Path) -> PackingPlan | None:
    try:
        arrays = [
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS
        ]
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return PackingPlan(*map(np.asarray, arrays))


def _pieces(
    document_lengths: Int64[np.ndarray, " documents"], capacity: int
) -> tuple[
    Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"]
]:
    """Document, start and length of each piece; pieces of one document overlap by one token."""
    stride = capacity - 1
    per_document = np.where(
        document_lengths > 1, -(-(document_lengths - 1) // stride), document_lengths
    )
    documents = np.repeat(np.arange(len(document_lengths)), per_document)
    first_piece = np.cumsum(per_document) - per_document
    starts = (np.arange(len(documents)) - first_piece[documents]) * stride
    return documents, starts, np.minimum(document_lengths[documents] - starts, capacity)


def _best_fit(counts: Int64[np.ndarray, " lengths"], capacity: int) -> list[tuple[Runs, int]]:
    """Best-fit decreasing on a histogram: groups of (contents of a row, number of such rows).

    Args:
      counts: [capacity + 1], the number of pieces of each length.
    """
    groups: dict[int, list[tuple[Runs, int]]] = {}  # by the room left in the row
    rooms: list[int] = []  # the keys of `groups`, ascending

    def put(room: int, runs: Runs, rows: int) -> None:
        if rows == 0:
            return
        if room not in groups:
            groups[room] = []
            bisect.insort(rooms, room)
        groups[room].append((runs, rows))

    def take(length: int) -> tuple[int, Runs, int | None]:
        """The fullest rows with room for a piece; of empty rows there are any number (None)."""
        index = bisect.bisect_left(rooms, length)
        if index == len(rooms):
            return capacity, (), None
        room = rooms[index]
        runs, rows = groups[room].pop()
        if not groups[room]:
            del groups[room], rooms[index]
        return room, runs, rows

    for length in range(capacity, 0, -1):
        left = int(counts[length])
        while left:
            room, runs, rows = take(length)
            per_row = room // length
            filled = left // per_row if rows is None else min(rows, left // per_row)
            put(room - per_row * length, (*runs, (length, per_row)), filled)
            left -= filled * per_row
            partly = 1 if left and (rows is None or filled < rows) else 0
            if partly:
                put(room - left * length, (*runs, (length, left)), 1)
                left = 0
            if rows is not None:
                put(room, runs, rows - filled - partly)
    return [group for room in rooms for group in groups[room]]
