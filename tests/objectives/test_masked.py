"""What is hidden, how often, and never what."""

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.objectives.batch import Vocabulary
from ablax.objectives.masked import MaskedConfig

SIZE, MASK = 50, 3
SPECIAL = np.arange(SIZE) < 4
STARTS = np.arange(SIZE) % 2 == 0  # even tokens begin a word
VOCABULARY = Vocabulary(SIZE, SPECIAL, STARTS, MASK)


def make_row(length=400, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, SIZE, length + 1).astype(np.int32)
    tokens[::50] = 1
    segments = np.repeat(np.arange(1, 9), length // 8 + 1)[: length + 1].astype(np.int32)
    segments[-20:] = 0
    return {
        "tokens": tokens,
        "positions": np.arange(length + 1, dtype=np.int32),
        "segment_ids": segments,
    }


def hide(config, seed=0, row=None):
    row = row or make_row(seed=seed)
    return row, config.transform(row, np.random.default_rng(seed), VOCABULARY)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_shares(unit):
    """Catches a share taken of all tokens, and an 80/10/10 taken per unit of the row instead of per token."""
    counts = np.zeros(4)
    for seed in range(60):
        row, batch = hide(MaskedConfig(unit=unit), seed)
        tokens, targets = batch["tokens"], batch["targets"]
        chosen = batch["loss_weights"] > 0
        ordinary = (row["segment_ids"][:-1] != 0) & ~SPECIAL[targets]
        assert not (chosen & ~ordinary).any(), "a special token or padding was selected"
        np.testing.assert_array_equal(tokens[~chosen], targets[~chosen])
        assert not SPECIAL[tokens[chosen & (tokens != MASK)]].any()
        counts += [
            chosen.sum(),
            ordinary.sum(),
            (tokens == MASK).sum(),
            (chosen & (tokens == targets)).sum(),
        ]
    selected, ordinary, masked, kept = counts
    assert abs(selected / ordinary - 0.15) < 0.01
    assert abs(masked / selected - 0.8) < 0.03
    assert abs(kept / selected - 0.1) < 0.03  # a random token may repeat the target once in 46


def test_words_are_whole():
    """Catches a selection that stops in the middle of a word or runs over the start of a segment."""
    for seed in range(20):
        row, batch = hide(MaskedConfig(unit="word"), seed)
        chosen, targets, segments = (
            batch["loss_weights"] > 0,
            batch["targets"],
            row["segment_ids"][:-1],
        )
        inside = (
            ~STARTS[targets[1:]]
            & (segments[1:] == segments[:-1])
            & ~SPECIAL[targets[1:]]
            & ~SPECIAL[targets[:-1]]
        )
        inside &= segments[1:] != 0
        assert (chosen[1:] == chosen[:-1])[inside].all()


def test_spans_are_longer_than_words():
    """Catches spans of one word."""

    def runs(unit):
        chosen = [hide(MaskedConfig(unit=unit), seed)[1]["loss_weights"] > 0 for seed in range(20)]
        starts = sum((c[1:] & ~c[:-1]).sum() for c in chosen)
        return sum(c.sum() for c in chosen) / starts

    assert runs("span") > 1.8 * runs("word")


def test_seeded():
    assert all(
        np.array_equal(a, b)
        for a, b in zip(hide(MaskedConfig(), 3)[1].values(), hide(MaskedConfig(), 3)[1].values())
    )
    row = make_row()
    first, second = (hide(MaskedConfig(), seed, row)[1]["tokens"] for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_row_without_ordinary_tokens():
    row = make_row() | {"segment_ids": np.zeros(401, np.int32)}
    _, batch = hide(MaskedConfig(unit="span"), row=row)
    assert batch["loss_weights"].sum() == 0


def test_bad_values():
    for bad in ({"rate": 0.0}, {"mask_share": 0.95, "random_share": 0.1}, {"span_length": 0.5}):
        with pytest.raises(RequestError):
            MaskedConfig(**bad)
