"""The loader: the batch of a step as a pure function of (layout, seed, step), on grain."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import grain
import numpy as np

from ablax.data.checks import check_range, check_sizes
from ablax.data.layouts import Layout, Row

Batch = dict[str, np.ndarray]
Transform = Callable[[Row, np.random.Generator], dict[str, np.ndarray]]


class Loader:
    """Random access to batches, and iteration from any step.

    Rows are drawn epoch after epoch, each epoch in its own order, and every row exactly once an
    epoch; a batch may straddle two epochs. Step s of the global batch of B rows takes rows s B to
    (s + 1) B of that sequence, and process p of P takes the p-th of P equal parts of them. So a
    batch depends neither on the processes nor on what was read before, and no iterator state has to
    be saved.

    Args:
      layout: where the rows come from.
      global_batch_size: B, rows per step in all processes together.
      seed: of the order of the rows and of the transform's generators, in [0, 2^32).
      transform: `transform(row, rng)` makes a row of the batch; its generator depends on
        (seed, s B + b) alone and is good for the call only. Without a transform a batch holds the layout's rows.
      process_index, process_count: this process and how many there are.
      shuffle: None leaves it to the layout; streams cannot be shuffled.
      limits: more names of integer arrays and the bound that their values must stay under, as
        `{"labels": 5}`.
      prefetch: batches made ahead by `iterate`'s thread; 0 makes each when asked for, without a
        thread.

    Attributes:
      first_row, local_batch_size: which rows of the global batch are this process's.

    Raises:
      RequestError: if a size does not fit.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        global_batch_size: int,
        seed: int,
        transform: Transform | None = None,
        process_index: int = 0,
        process_count: int = 1,
        shuffle: bool | None = None,
        limits: Mapping[str, int] | None = None,
        prefetch: int = 4,
    ):
        check_sizes(
            layout, global_batch_size, seed, process_index, process_count, shuffle, prefetch
        )
        self.layout, self.rows_per_epoch = layout, len(layout)
        self.global_batch_size = global_batch_size
        self.tokens_per_step = global_batch_size * layout.sequence_length
        vocab_size = layout.store.vocab_size
        self._limits = {
            "tokens": vocab_size,
            "targets": vocab_size,
            "positions": layout.position_limit,
        }
        self._limits |= {"segment_ids": layout.segment_limit, **(limits or {})}
        self._prefetch = prefetch
        self._seed, self._transform = seed, transform
        order = grain.MapDataset.range(len(layout)).seed(seed)
        if layout.shuffled if shuffle is None else shuffle:
            order = order.shuffle()
        self.local_batch_size = global_batch_size // process_count
        self.first_row = process_index * self.local_batch_size
        order: Any = order.repeat()
        # Kept until the ledger asks which documents a step's rows are of, some batches later: a shuffled number costs
        # as much as a short row. Forgotten ones are computed again.
        self._number = functools.lru_cache(2**14)(order.__getitem__)
        self._batches = _Batches(
            order, self._batch, self.first_row, self.local_batch_size, global_batch_size
        )

    @property
    def steps_per_epoch(self) -> float:
        """Steps that read as many rows as an epoch has; a fraction when B does not divide them."""
        return self.rows_per_epoch / self.global_batch_size

    def epoch_of(self, step: int) -> int:
        """The epoch of the first row of this step."""
        return step * self.global_batch_size // self.rows_per_epoch

    def batch(self, step: int) -> Batch:
        """This process's rows of one step, arrays [B / processes, ...]; any step costs the same.

        Raises:
          RequestError: if a value is outside its range.
        """
        if step < 0:
            raise IndexError(f"step {step} is negative")
        batch = self._batches[step]
        assert batch is not None
        return batch

    def documents(self, step: int) -> list[np.ndarray]:
        """The documents, by number, of each row of the global batch of one step."""
        first = step * self.global_batch_size
        places = range(first, first + self.global_batch_size)
        return [self.layout.documents(self._row(place)) for place in places]

    def _row(self, position: int) -> int:
        # The row's number forgets the epoch, which the layout wants to know.
        epoch = position // self.rows_per_epoch
        return epoch * self.rows_per_epoch + int(self._number(position))

    def iterate(self, start_step: int = 0) -> "BatchIterator":
        """Endless iteration over `batch(start_step)` and its successors, made ahead by a thread."""
        options = grain.ReadOptions(
            num_threads=min(1, self._prefetch), prefetch_buffer_size=self._prefetch
        )
        return BatchIterator(iter(self._batches.to_iter_dataset(options)), start_step)

    def _batch(self, positions: Sequence[int]) -> Batch:
        rows = list(self._rows(positions))
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        for name, limit in self._limits.items():
            if name in batch:
                check_range(name, batch[name], limit)
        return batch

    def _rows(self, positions: Sequence[int]) -> Iterator[Mapping[str, np.ndarray]]:
        # Setting a generator's counter costs a tenth of making one for each row.
        generator = np.random.Generator(np.random.Philox(key=self._seed))
        state: Any = generator.bit_generator.state
        for position in positions:
            row = self.layout[self._row(position)]
            if self._transform is not None:
                state["state"]["counter"][3] = position
                generator.bit_generator.state = state
                row = self._transform(row, generator)
            yield row


class BatchIterator:
    """Batches from a step on. Close it, or use it as a context manager, to end its thread."""

    def __init__(self, iterator: grain.DatasetIterator[Batch], start_step: int):
        self._iterator = iterator
        self._iterator.set_state({"next_index": start_step})
        self._iterator.start_prefetch()

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        """Ends the thread after the batch that it is making; closing twice is fine."""
        self._iterator.close()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Batches(grain.MapDataset):
    """The batches of one process: of each B rows, the contiguous part that is its own.

    One stage from row numbers to a batch: grain's bookkeeping costs as much per stage and row as a
    short row itself, on the cores that compute the step.
    """

    def __init__(
        self,
        order: grain.MapDataset,
        make: Callable[[Sequence[int]], Batch],
        first: int,
        local_batch_size: int,
        global_batch_size: int,
    ):
        super().__init__(order)
        self._make, self._first = make, first
        self._local, self._global = local_batch_size, global_batch_size

    def __len__(self) -> int:
        return len(self._parent) // self._global

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        first = index * self._global + self._first
        return self._make(range(first, first + self._local))
