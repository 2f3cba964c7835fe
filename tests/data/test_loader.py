"""Laws of the loader: a batch depends on the layout, the seed and the step, and on nothing else."""

import collections
import contextlib
import threading
import time

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.data.layouts import make_layout
from ablax.data.loader import Loader
from ablax.data.store import TokenStore

B, T = 8, 5


def make_store(tokens=600):
    lengths = np.full(tokens // 12, 12)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenStore(
        np.arange(2, 2 + offsets[-1]).astype(np.uint16), offsets, lengths, "s", 1000, 0, None
    )


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    return {
        kind: make_layout(
            kind, make_store(), sequence_length=T, bos=0, eos=1, batch_size=B, seed=5, root=root
        )
        for kind in ("windows", "packed", "streams")
    }


def shift(row, rng):
    return {"tokens": row["tokens"][:-1], "targets": row["tokens"][1:], "noise": rng.random(3)}


def noise_first(row, rng):
    noise = rng.random(7)
    return {
        "tokens": row["tokens"][:-1] * (noise.sum() > 0),
        "segment_ids": row["segment_ids"][:-1],
    }


def equal(batch, other):
    return batch.keys() == other.keys() and all(
        np.array_equal(batch[name], other[name]) and batch[name].dtype == other[name].dtype
        for name in batch
    )


def differ(batch, other):
    return not np.array_equal(batch["tokens"], other["tokens"])


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


def wait_until_no_prefetch_threads():
    deadline = time.monotonic() + 5
    while prefetch_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not prefetch_threads()


@pytest.mark.parametrize("kind", ["windows", "packed", "streams"])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_seek_is_iteration_and_restart_is_continuation(layouts, kind, prefetch):
    """Catches: a restart that begins the order again; generators that depend on what was read."""
    loader = Loader(layouts[kind], global_batch_size=B, seed=1, transform=shift, prefetch=prefetch)
    steps = 3 * int(loader.steps_per_epoch) + 2
    with loader.iterate() as batches:
        whole = [next(batches) for _ in range(steps)]
    for step in (0, steps - 1, 7):
        assert equal(loader.batch(step), whole[step])
    with Loader(layouts[kind], global_batch_size=B, seed=1, transform=shift).iterate(5) as batches:
        assert all(equal(next(batches), whole[step]) for step in range(5, steps))


@pytest.mark.parametrize("kind", ["windows", "packed", "streams"])
def test_global_batch_is_independent_of_the_processes(layouts, kind):
    """Catches: rows dealt out by turns, or a generator seeded by the row's place in its process."""

    def global_batch(processes, step):
        parts = [
            Loader(
                layouts[kind],
                global_batch_size=B,
                seed=1,
                transform=shift,
                process_index=process,
                process_count=processes,
            ).batch(step)
            for process in range(processes)
        ]
        assert all(len(part["tokens"]) == B // processes for part in parts)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    for step in (0, 3, 40):
        alone = global_batch(1, step)
        assert equal(alone, global_batch(2, step))
        assert equal(alone, global_batch(4, step))


@pytest.mark.parametrize("kind", ["windows", "packed"])
@pytest.mark.parametrize("batch_size", [1, 7, 8])
def test_every_row_once_per_epoch(layouts, kind, batch_size):
    """Catches: dropping an epoch's last rows, which B does not divide; drawing with replacement."""
    layout = layouts[kind]
    loader = Loader(layout, global_batch_size=batch_size, seed=2)
    rows, epochs = loader.rows_per_epoch, 3
    drawn = np.concatenate(
        [loader.batch(step)["tokens"] for step in range(-(-epochs * rows // batch_size))]
    )
    orders = []
    for epoch in range(epochs):
        expected = [tuple(layout[epoch * rows + row]["tokens"]) for row in range(rows)]
        seen = [tuple(row) for row in drawn[epoch * rows : (epoch + 1) * rows]]
        assert collections.Counter(seen) == collections.Counter(expected)
        orders.append([expected.index(row) for row in seen])
    assert orders[0] != sorted(orders[0])
    assert orders[0] != orders[1] != orders[2]
    assert loader.steps_per_epoch == rows / batch_size
    assert loader.tokens_per_step == batch_size * T
    last_step = (rows - 1) // batch_size
    assert [loader.epoch_of(step) for step in (0, last_step, last_step + 1)] == [0, 0, 1]


@pytest.mark.parametrize("kind", ["windows", "packed"])
def test_every_row_once_per_epoch_over_a_travel(layouts, kind):
    """A run that goes on from 1 process with 8, 2, 4 and 1. Catches: a leg that begins at another row, or an epoch that
    begins again, when the number of processes changes in the midst of it."""
    layout, epochs = layouts[kind], 2
    rows = len(layout)
    steps = -(-epochs * rows // B)
    ends = [steps * leg // 5 for leg in range(6)]
    assert all(end * B % rows for end in ends[1:])
    drawn = []
    for processes, start, end in zip((1, 8, 2, 4, 1), ends, ends[1:]):
        with contextlib.ExitStack() as stack:
            parts = [
                stack.enter_context(
                    Loader(
                        layout,
                        global_batch_size=B,
                        seed=2,
                        process_index=process,
                        process_count=processes,
                        prefetch=0,
                    ).iterate(start)
                )
                for process in range(processes)
            ]
            drawn += [next(part)["tokens"] for _ in range(start, end) for part in parts]
    drawn = np.concatenate(drawn)
    for epoch in range(epochs):
        expected = [tuple(layout[epoch * rows + row]["tokens"]) for row in range(rows)]
        assert len(set(expected)) == rows  # or a row could stand for another
        seen = [tuple(row) for row in drawn[epoch * rows : (epoch + 1) * rows]]
        assert collections.Counter(seen) == collections.Counter(expected)


def test_seed_decides_and_processes_of_other_objectives_see_the_same_rows(layouts):
    """Catches: an order that depends on the transform or on its generator."""
    arguments = {"layout": layouts["windows"], "global_batch_size": B}
    plain = Loader(**arguments, seed=1)
    for step in (0, 30):
        rows = plain.batch(step)["tokens"][:, :-1]
        np.testing.assert_array_equal(
            Loader(**arguments, seed=1, transform=shift).batch(step)["tokens"], rows
        )
        np.testing.assert_array_equal(
            Loader(**arguments, seed=1, transform=noise_first).batch(step)["tokens"], rows
        )
        assert differ(plain.batch(step), Loader(**arguments, seed=2).batch(step))
    shuffled, ordered = plain.batch(0), Loader(**arguments, seed=1, shuffle=False).batch(0)
    assert differ(shuffled, ordered)
    np.testing.assert_array_equal(ordered["tokens"][1], layouts["windows"][1]["tokens"])


def test_generators_differ_between_rows_and_epochs(layouts):
    """Catches: a generator per row number, so that a masked model sees one mask for ever."""
    loader = Loader(layouts["packed"], global_batch_size=B, seed=1, transform=shift)
    steps = 2 * int(loader.steps_per_epoch)
    noise = np.concatenate([loader.batch(step)["noise"] for step in range(steps)])
    assert len(np.unique(noise[:, 0])) == len(noise)


def test_far_steps_cost_what_near_ones_cost(layouts):
    """Catches: reaching a step by walking to it."""
    loader = Loader(layouts["windows"], global_batch_size=B, seed=1, transform=shift)
    begin = time.process_time()
    far = loader.batch(10**7)
    with loader.iterate(10**7) as batches:
        assert equal(next(batches), far)
    assert time.process_time() - begin < 0.5


def test_streams_continue_in_the_batches(layouts):
    """Catches: shuffling streams, or slicing them so that a lane moves to another row."""
    loader = Loader(layouts["streams"], global_batch_size=B, seed=1)
    steps = int(loader.steps_per_epoch)
    for step in range(2 * steps - 1):
        now, after = loader.batch(step), loader.batch(step + 1)
        if (step + 1) % steps:
            np.testing.assert_array_equal(now["tokens"][:, -1], after["tokens"][:, 0])
            np.testing.assert_array_equal(now["positions"][:, -1], after["positions"][:, 0])
        else:
            assert not after["positions"][:, 0].any()


def test_iteration_is_bounded_and_leaves_no_thread(layouts):
    """Catches: grain's default buffer of 500 batches; an iterator without an end to its thread."""
    made = []

    def count(row, rng):
        made.append(0)
        return shift(row, rng)

    loader = Loader(layouts["windows"], global_batch_size=B, seed=1, transform=count, prefetch=3)
    assert wait_until_no_prefetch_threads()
    with loader.iterate() as batches:
        next(batches)
        time.sleep(0.2)
        assert len(prefetch_threads()) == 1
        assert len(made) <= B * (1 + 3)
    batches.close()
    assert wait_until_no_prefetch_threads()


def test_a_batch_is_cheap(layouts):
    """Catches: work per row that slows down a small model's step (bound: 10 x the measured)."""
    loader = Loader(layouts["windows"], global_batch_size=B, seed=1, transform=shift)
    loader.batch(0)
    begin = time.process_time()
    for step in range(50):
        loader.batch(step)
    assert (time.process_time() - begin) / 50 < 3e-3


@pytest.mark.parametrize("name", ["tokens", "targets", "positions", "segment_ids", "labels"])
@pytest.mark.parametrize("value", [-1, 2000])
def test_values_out_of_range_are_refused(layouts, name, value):
    """Catches: a token, position or label that XLA would clamp to a wrong row without a word."""

    def wrong(row, rng):
        return {"tokens": row["tokens"], name: np.full(T, value, np.int32)}

    loader = Loader(
        layouts["windows"], global_batch_size=B, seed=1, transform=wrong, limits={"labels": 4}
    )
    with pytest.raises(RequestError, match=rf"{name} has values in \[{value}, {value}\]"):
        loader.batch(0)
    with loader.iterate() as batches, pytest.raises(RequestError, match=name):
        next(batches)


def test_requests_that_cannot_be_met(layouts):
    windows, streams = layouts["windows"], layouts["streams"]
    wrong = [
        (windows, {"global_batch_size": 500}, "the split has 139 rows of 6 tokens and a batch 500"),
        (windows, {"process_count": 3}, "training.batch_size is 8: .* multiple of the 3 processes"),
        (windows, {"process_index": 1}, "process_index is 1"),
        (windows, {"seed": -1}, "seed is -1"),
        (windows, {"prefetch": -1}, "data.prefetch is -1"),
        (streams, {"shuffle": True}, "streams cannot be shuffled"),
        (streams, {"global_batch_size": 4}, "the layout has 8 lanes and a batch 4 rows"),
    ]
    for layout, change, message in wrong:
        with pytest.raises(RequestError, match=message):
            Loader(layout, **{"global_batch_size": B, "seed": 1, **change})
    with pytest.raises(IndexError, match="step -1"):
        Loader(windows, global_batch_size=B, seed=1).batch(-1)
