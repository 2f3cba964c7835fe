"""Laws of the layouts, against documents joined or cut by hand."""

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.data.layouts import Windows, make_layout
from ablax.data.store import TokenStore

BOS, EOS = 1, 2
MARKS = [(None, None), (None, EOS), (BOS, None), (BOS, EOS)]
LENGTHS = [5, 0, 1, 13, 2, 0, 0, 40, 7, 1, 0]


def make_store(lengths=LENGTHS):
    """Tokens from 10 on, each different from every other."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(10, 10 + offsets[-1]).astype(np.uint16)
    counts = np.asarray(lengths, np.int64)
    return TokenStore(tokens, offsets, counts, f"store {lengths}", 1000, 0, None)


def marked(store, bos, eos):
    for index in range(len(store)):
        before, after = [[mark] if mark is not None else [] for mark in (bos, eos)]
        yield np.array([*before, *store.document(index), *after], np.int32)


def rows_of(layout, epoch=0):
    return [layout[epoch * len(layout) + row] for row in range(len(layout))]


def check_form(row, sequence_length):
    assert {name: (array.shape, array.dtype) for name, array in row.items()} == dict.fromkeys(
        ("tokens", "positions", "segment_ids"), ((sequence_length + 1,), np.int32)
    )


@pytest.mark.parametrize(("bos", "eos"), MARKS)
@pytest.mark.parametrize("sequence_length", [1, 2, 7])
def test_windows_are_the_joined_documents(bos, eos, sequence_length):
    """Catches: a mark put one place off, or twice where a window begins at a document's end."""
    store = make_store()
    joined = np.concatenate(list(marked(store, bos, eos)))
    layout = make_layout("windows", store, sequence_length=sequence_length, bos=bos, eos=eos)
    assert len(layout) == (len(joined) - 1) // sequence_length
    for k, row in enumerate(rows_of(layout)):
        check_form(row, sequence_length)
        start = k * sequence_length
        assert row["tokens"].tolist() == joined[start : start + sequence_length + 1].tolist()
        assert row["positions"].tolist() == list(range(sequence_length + 1))
        assert set(row["segment_ids"]) == {1}


def test_window_phase_moves_later_epochs_and_repeats_nothing():
    """Catches: a phase that changes the number of rows; a wrap that misses or repeats a token."""
    store = make_store([200])
    layout = Windows(store, 9, seed=3)
    phases = [layout.phase_of(epoch) for epoch in range(20)]
    assert phases[0] == 0
    assert len(set(phases)) > 4
    assert all(0 <= phase < 9 for phase in phases)
    for epoch in range(20):
        targets = np.concatenate([row["tokens"][1:] for row in rows_of(layout, epoch)])
        assert len(set(targets)) == len(targets)
        assert targets.tolist() == [
            10 + (phases[epoch] + 1 + i) % 200 for i in range(9 * len(layout))
        ]
    fixed = make_layout("windows", store, sequence_length=9, phase=False)
    assert fixed[len(fixed)]["tokens"][0] == 10
    other = Windows(store, 9, seed=4)
    assert phases != [other.phase_of(epoch) for epoch in range(20)]


@pytest.mark.parametrize(("bos", "eos"), MARKS)
@pytest.mark.parametrize("sequence_length", [1, 4, 16])
def test_packed_segments_are_the_documents(tmp_path, bos, eos, sequence_length):
    """Catches: a mark on each piece of a cut document; positions that do not restart."""
    store = make_store()
    layout = make_layout(
        "packed", store, sequence_length=sequence_length, bos=bos, eos=eos, root=tmp_path
    )
    pieces = []
    for row in rows_of(layout):
        check_form(row, sequence_length)
        ids = row["segment_ids"]
        used = np.count_nonzero(ids)
        assert not row["tokens"][used:].any()
        assert not row["positions"][used:].any()
        assert ids[:used].tolist() == sorted(ids[:used])
        assert set(ids[:used]) == set(range(1, ids.max() + 1))
        for segment in range(1, ids.max() + 1):
            tokens = row["tokens"][ids == segment]
            assert row["positions"][ids == segment].tolist() == list(range(len(tokens)))
            pieces.append(tuple(tokens.tolist()))
    expected = []
    for document in marked(store, bos, eos):
        starts = range(0, max(len(document) - 1, 1), sequence_length)
        expected += [
            tuple(document[start : start + sequence_length + 1].tolist()) for start in starts
        ]
    assert sorted(pieces) == sorted(piece for piece in expected if piece)


def test_packed_epochs_have_the_same_rows(tmp_path):
    layout = make_layout("packed", make_store(), sequence_length=8, root=tmp_path)
    for row, again in zip(rows_of(layout), rows_of(layout, epoch=3)):
        np.testing.assert_array_equal(row["tokens"], again["tokens"])


@pytest.mark.parametrize(("bos", "eos"), MARKS)
def test_streams_continue_and_restart_with_the_epoch(bos, eos):
    """Catches: lanes interleaved by row; positions that restart in each row."""
    store, lanes, sequence_length = make_store(), 3, 4
    joined = np.concatenate(list(marked(store, bos, eos)))
    layout = make_layout("streams", store, sequence_length=4, batch_size=lanes, bos=bos, eos=eos)
    steps = len(layout) // lanes
    assert steps == (len(joined) - 1) // (lanes * sequence_length) > 1
    for step in range(2 * steps):
        for lane in range(lanes):
            row = layout[step * lanes + lane]
            check_form(row, sequence_length)
            start = step % steps * sequence_length
            assert row["positions"].tolist() == list(range(start, start + sequence_length + 1))
            begin = lane * steps * sequence_length + start
            assert row["tokens"].tolist() == joined[begin : begin + sequence_length + 1].tolist()
            assert row["positions"].max() < layout.position_limit


def test_rows_do_not_share_what_a_caller_may_write():
    """Catches: a transform that writes into one row's positions and changes every other row's."""
    row = make_layout("windows", make_store(), sequence_length=4)[0]
    row["tokens"][:] = 0
    with pytest.raises(ValueError, match="read-only"):
        row["positions"][0] = 5


def test_requests_that_cannot_be_met(tmp_path):
    store = make_store([6])
    make_layout("windows", store, sequence_length=5)
    with pytest.raises(RequestError, match=r"6 tokens in 1 documents and .* needs 7: lower data"):
        make_layout("windows", store, sequence_length=6)
    with pytest.raises(RequestError, match="needs 9: lower training"):
        make_layout("streams", store, sequence_length=4, batch_size=2)
    with pytest.raises(RequestError, match="needs batch_size"):
        make_layout("streams", store, sequence_length=4)
    with pytest.raises(RequestError, match="eos is 1000, outside the vocabulary of 1000"):
        make_layout("packed", store, sequence_length=4, eos=1000, root=tmp_path)
    with pytest.raises(RequestError, match="sequence_length is 0"):
        make_layout("windows", store, sequence_length=0)
    with pytest.raises(RequestError, match="choose windows, packed or streams"):
        make_layout("sorted", store, sequence_length=4)  # pyright: ignore[reportArgumentType]
