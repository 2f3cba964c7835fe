"""Laws of the packing plan: every token once, no row too long, nearly full, the same each time."""

import time

import numpy as np
import pytest

from ablax.data.packing import load_plan, plan_packing


def lognormal_lengths(documents, mean=6.0, sigma=1.2):
    rng = np.random.default_rng(0)
    return np.clip(rng.lognormal(mean, sigma, documents), 1, 1e6).astype(np.int64)


def same(plan, other):
    return all(
        np.array_equal(getattr(plan, name), getattr(other, name))
        for name in plan.__dataclass_fields__
    )


@pytest.mark.parametrize("capacity", [2, 3, 17, 129])
def test_every_token_once_and_no_row_too_long(capacity):
    """Catches: pieces that do not overlap by one token; a row one token over its capacity."""
    document_lengths = np.concatenate(
        [
            [0, 1, 2, capacity, capacity + 1, 2 * capacity - 1, 2 * capacity],
            lognormal_lengths(300, 3),
        ]
    )
    plan = plan_packing(document_lengths, capacity, seed=1)
    covered = [np.zeros(length, int) for length in document_lengths]
    predicted = [np.zeros(length, int) for length in document_lengths]
    slices = []
    for row in range(len(plan)):
        inside = np.arange(plan.row_starts[row], plan.row_starts[row] + plan.row_counts[row])
        assert 0 < plan.lengths[inside].sum() <= capacity
        slices.extend(inside)
    assert sorted(slices) == list(range(len(plan.lengths)))
    for document, start, length in zip(plan.documents, plan.starts, plan.lengths):
        covered[document][start : start + length] += 1
        predicted[document][start + 1 : start + length] += 1
        assert start + length <= document_lengths[document]
    for length, cover, predict in zip(document_lengths, covered, predicted):
        assert (cover > 0).all()
        assert predict.tolist() == [0] * min(length, 1) + [1] * (length - 1)


def test_nearly_full_and_fast():
    """Catches: next-fit (about 75% full), or a cost that grows with the square of the documents."""
    document_lengths = lognormal_lengths(200_000)
    begin = time.process_time()
    plan = plan_packing(document_lengths, 1025, seed=0)
    assert time.process_time() - begin < 2
    assert plan.fill(1025) > 0.98


def test_deterministic_and_seeded():
    """Catches: an unseeded shuffle; a seed that changes nothing."""
    document_lengths = lognormal_lengths(500)
    plan = plan_packing(document_lengths, 257, seed=3)
    assert same(plan, plan_packing(document_lengths, 257, seed=3))
    assert not same(plan, plan_packing(document_lengths, 257, seed=4))


def test_cached_by_its_arguments_and_rebuilt_when_damaged(tmp_path):
    """Catches: a cache key without the capacity; a truncated file that is read as it is."""
    document_lengths = lognormal_lengths(500)
    arguments = {"seed": 3, "key": "store", "root": tmp_path}
    plan = plan_packing(document_lengths, 257, seed=3)
    assert same(plan, load_plan(document_lengths, 257, **arguments))
    assert not same(plan, load_plan(document_lengths, 129, **arguments))
    for path in tmp_path.rglob("lengths.npy"):
        path.write_bytes(path.read_bytes()[:-8])
    assert same(plan, load_plan(document_lengths, 257, **arguments))
    # What is cached is read, not computed again.
    assert same(plan, load_plan(document_lengths[:1], 257, **arguments))
