"""Batches for several runs that read the same ones in step: each is drawn once."""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from ablax.data.loader import Batch, BatchIterator, Loader

KEPT = 4
"""Batches that are kept: runs in step are at most one or two apart."""


class SharedBatches:
    """Gives each reader the batches of a loader from any step on. Close it, or use it as a context manager.

    A reader that has fallen behind, or is ahead, gets the same batches from the loader itself.
    """

    def __init__(self, loader: Loader):
        self.loader = loader
        self._iterator: BatchIterator | None = None
        self._next = 0
        self._recent: dict[int, Batch] = {}

    def iterate(self, start_step: int = 0) -> AbstractContextManager[Iterator[Batch]]:
        """See `Loader.iterate`."""
        return nullcontext(map(self._batch, itertools.count(start_step)))

    def _batch(self, step: int) -> Batch:
        if step in self._recent:
            return self._recent[step]
        if self._iterator is None:
            self._iterator, self._next = self.loader.iterate(step), step
        if step != self._next:
            return self.loader.batch(step)
        self._recent[step] = batch = next(self._iterator)
        self._recent.pop(step - KEPT, None)
        self._next = step + 1
        return batch

    def __enter__(self) -> "SharedBatches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._iterator:
            self._iterator.close()
