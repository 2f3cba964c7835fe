"""What layouts and loaders refuse: sizes that do not fit, values that no model could look up."""

from typing import TYPE_CHECKING

import numpy as np

from ablax.config import RequestError
from ablax.data.store import TokenStore

if TYPE_CHECKING:
    from ablax.data.layouts import Layout


def check_sizes(
    layout: "Layout",
    global_batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
    shuffle: bool | None,
    prefetch: int,
) -> None:
    """Raises RequestError unless a loader can be made of these; see `Loader`."""
    if global_batch_size < 1 or global_batch_size % process_count:
        raise RequestError(
            f"training.batch_size is {global_batch_size}: "
            f"it must be a positive multiple of the {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise RequestError(f"process_index is {process_index}: it must be in [0, {process_count})")
    if not 0 <= seed < 2**32:
        raise RequestError(f"seed is {seed}: it must be in [0, 2^32)")
    if prefetch < 0:
        raise RequestError(f"data.prefetch is {prefetch}: it must be 0 or more batches")
    lanes = getattr(layout, "batch_size", None)
    if lanes is not None and lanes != global_batch_size:
        raise RequestError(
            f"the layout has {lanes} lanes and a batch {global_batch_size} rows: make them equal"
        )
    if lanes is not None and shuffle:
        raise RequestError(
            "streams cannot be shuffled: set shuffle to none, or choose windows or packed rows"
        )
    if len(layout) < global_batch_size:
        raise RequestError(
            f"the split has {len(layout)} rows of {layout.sequence_length + 1} tokens "
            f"and a batch {global_batch_size}: "
            "lower training.batch_size or data.sequence_length, or use a longer split"
        )


def check_range(name: str, values: np.ndarray, limit: int) -> None:
    """Raises RequestError unless all values lie in [0, limit)."""
    # As unsigned, a negative number is larger than every limit: one pass instead of two.
    if values.view(np.dtype(f"u{values.itemsize}")).max(initial=0) >= limit:
        raise RequestError(
            f"{name} has values in [{values.min()}, {values.max()}] and not only in [0, {limit}): "
            "look at the transform and the tokenizer"
        )


def check_rows(store: TokenStore, sequence_length: int, bos: int | None, eos: int | None) -> None:
    """Raises RequestError unless a layout can be made of these; see `make_layout`."""
    if sequence_length < 1:
        raise RequestError(f"data.sequence_length is {sequence_length}: it must be at least 1")
    for name, mark in (("bos", bos), ("eos", eos)):
        if mark is not None and not 0 <= mark < store.vocab_size:
            raise RequestError(
                f"{name} is {mark}, outside the vocabulary of {store.vocab_size}: "
                "pass the tokenizer's own id"
            )


def too_short(store: TokenStore, have: int, need: int, knobs: str) -> RequestError:
    """What to say of a split that has less than one step needs."""
    return RequestError(
        f"the split has {have} tokens in {len(store)} documents and one step needs {need}: "
        f"lower {knobs}, or use a longer split"
    )
