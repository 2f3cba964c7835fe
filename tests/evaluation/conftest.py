"""Documents of many lengths."""

import numpy as np
import pytest

from ablax.evaluation.pieces import Documents
from tiny_models import VOCAB, decoder, encoder, lstm

__all__ = ["decoder", "documents", "encoder", "lstm"]


@pytest.fixture(scope="session")
def documents():
    """Lengths around the context of 8: empty, one token, just a window, several windows."""
    rng = np.random.default_rng(0)
    lengths = [5, 0, 1, 7, 6, 8, 21, 3, 15, 2, 14, 16]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(4, VOCAB, offsets[-1]).astype(np.uint16)
    return Documents(tokens, offsets, np.array(lengths) * 2, lossless=True)
