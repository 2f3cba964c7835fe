"""All documents of a token store as one sequence, with document marks, without a copy."""

import numpy as np
from jaxtyping import Int32, Int64

from ablax.data.store import TokenStore


class JoinedTokens:
    """All documents of a store in one sequence: bos (if any), document, eos (if any), and so on,
    never copied.

    Reading past the end goes on at the start, so the last document is followed by the first.
    """

    def __init__(self, store: TokenStore, bos: int | None, eos: int | None):
        self._store, self._bos, self._eos = store, bos, eos
        marks = (bos is not None) + (eos is not None)
        self._offsets = store.offsets + marks * np.arange(len(store.offsets)) if marks else None
        self._length = int(store.offsets[-1]) + marks * len(store)

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, count: int) -> Int32[np.ndarray, " count"]:
        """`count` tokens from `start` < length; `count` is at most the length + 1."""
        over = start + count - self._length
        if over <= 0:
            return self._read(start, start + count)
        return np.concatenate([self._read(start, self._length), self._read(0, over)])

    def documents(self, start: int, count: int) -> Int64[np.ndarray, " documents"]:
        """The documents that `read(start, count)` reads of, their marks included, each once."""
        over = start + count - self._length
        if over > 0:
            parts = self.documents(start, self._length - start), self.documents(0, over)
            return np.union1d(*parts)
        offsets = self._store.offsets if self._offsets is None else self._offsets
        first, last = np.searchsorted(offsets, (start, start + count - 1), side="right") - 1
        inside = np.arange(first, last + 1)
        if first == last:  # as most rows are of one document
            return inside
        return inside[offsets[inside] < offsets[inside + 1]]  # an empty document is not read

    def _read(self, start: int, stop: int) -> Int32[np.ndarray, " count"]:
        if self._offsets is None:
            return self._store.tokens[start:stop].astype(np.int32)
        first, last = np.searchsorted(self._offsets, (start, stop - 1), side="right") - 1
        bounds = (
            self._offsets[first : last + 2] - start
        )  # where documents begin, and where the last one ends
        begins, ends = bounds[:-1], bounds[1:] - 1
        tokens = np.empty(stop - start, np.int32)
        is_token = np.ones(stop - start, bool)
        for mark, places in ((self._bos, begins), (self._eos, ends)):
            if mark is not None:
                places = places[(places >= 0) & (places < stop - start)]
                tokens[places] = mark
                is_token[places] = False
        position = self._token_position(start, int(first))
        tokens[is_token] = self._store.tokens[position : position + np.count_nonzero(is_token)]
        return tokens

    def _token_position(self, start: int, document: int) -> int:
        """How many of the store's tokens lie before joined position `start`, inside `document`."""
        assert self._offsets is not None
        inside = start - int(self._offsets[document]) - (self._bos is not None)
        first, past = self._store.offsets[document], self._store.offsets[document + 1]
        return int(first) + min(max(inside, 0), int(past - first))
