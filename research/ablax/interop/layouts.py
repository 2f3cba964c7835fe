"""How one tensor of a checkpoint relates to the parameters that it holds, in both directions."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A pair of inverse functions.

    Attributes:
      split: (their tensor, heads N) -> our arrays.
      join: (our arrays, heads N) -> their tensor.
    """

    split: Callable[[np.ndarray, int], Arrays]
    join: Callable[[Arrays, int], np.ndarray]


def _split_heads(tensor: np.ndarray, heads: int) -> Arrays:
    parts = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
    return [parts[:, i].reshape(-1, *tensor.shape[1:]).T for i in range(3)]


def _join_heads(arrays: Arrays, heads: int) -> np.ndarray:
    parts = [array.T.reshape(heads, 1, -1, *array.T.shape[1:]) for array in arrays]
    joined = np.concatenate(parts, axis=1)
    return joined.reshape(-1, *joined.shape[3:])


SAME = Layout(lambda tensor, heads: [tensor], lambda arrays, heads: arrays[0])
TRANSPOSED = Layout(lambda tensor, heads: [tensor.T], lambda arrays, heads: arrays[0].T)
"""Kernels [out, in], as PyTorch's linear layers keep them."""

THIRDS = Layout(
    lambda tensor, heads: np.split(tensor, 3, axis=-1),
    lambda arrays, heads: np.concatenate(arrays, axis=-1),
)
"""Query, key and value side by side, [in, 3 x out] (GPT-2)."""

HEADS = Layout(_split_heads, _join_heads)
"""Query, key and value of one head after the other, [N x 3 x H, in] (GPT-NeoX)."""
