"""Micro-batches: the rows of a batch in equal parts, and back."""

from typing import Any

import jax
import jax.numpy as jnp


def split_rows(tree: Any, parts: int) -> Any:
    """[B ...] -> [parts B/parts ...]; part i takes rows i, i+parts, ..., so that each part lies on every device."""
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), tree
    )


def join_rows(tree: Any) -> Any:
    """The inverse of `split_rows`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), tree)
