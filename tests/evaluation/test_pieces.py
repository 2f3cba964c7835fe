"""Laws of pieces: every place counts once, and rows hold whole pieces."""

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.evaluation.pieces import frame, lanes, packed, tokenize, windows


def test_framing_puts_marks_around_each_document(documents):
    """Catches: a mark that overwrites a token, or is missing around an empty document."""
    for bos, eos in ((None, None), (1, None), (None, 2), (1, 2)):
        framed, offsets = frame(documents, bos, eos)
        for index in range(len(offsets) - 1):
            begin, end = documents.offsets[index : index + 2]
            expected = [bos, *documents.tokens[begin:end], eos]
            expected = [token for token in expected if token is not None]
            assert framed[offsets[index] : offsets[index + 1]].tolist() == expected


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("context", "stride"), [(8, 8), (8, 3), (8, 1), (5, 4), (2, 2)])
def test_every_place_counts_once_with_the_most_context(context, stride, shift):
    """Catches: a last window that is dropped or counts twice, a window that reaches into the next document."""
    offsets = np.concatenate([[0], np.cumsum(np.arange(40))])
    pieces = windows(offsets, context, stride, shift)
    counts = np.zeros(offsets[-1], int)
    for start, length, counted in zip(pieces.starts, pieces.lengths, pieces.counted_from):
        assert 0 < length <= context
        counts[start + counted : start + length] += 1
        # Places that count have the whole context behind them, except in a document's first window.
        document = np.searchsorted(offsets, start, side="right") - 1
        assert counted == (0 if start == offsets[document] else context - stride)
    expected = np.ones(offsets[-1], int)
    if shift:  # the last token of a document predicts nothing
        expected[offsets[1:][np.diff(offsets) > 0] - 1] = 0
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("lay", [packed, lanes])
def test_pieces_are_laid_out_whole(lay):
    """Catches: two pieces at one place, a place lost, pieces out of order in a lane."""
    lengths = np.random.default_rng(0).integers(1, 9, 100)
    seen = []
    cells = set()
    for number, places in enumerate(lay(lengths, 8, 4)):
        assert places.at.max() < 8 * 4
        cells |= {(number, at) for at in places.at.tolist()}
        seen.append(np.stack([places.pieces, places.inside, places.at]))
        if lay is packed:
            keys = places.at // 8 * 1000 + places.segment_ids
            for key in np.unique(keys):  # one segment is one piece, in order, in adjacent places
                here = keys == key
                assert len(np.unique(places.pieces[here])) == 1
                np.testing.assert_array_equal(places.inside[here], np.arange(here.sum()))
                assert (np.diff(places.at[here]) == 1).all()
        else:
            row, column = np.divmod(places.at, 8)
            same = (np.diff(row) == 0) & (np.diff(places.pieces) == 0)
            assert (np.diff(column)[same] == 1).all()
    pieces, inside, _ = np.concatenate(seen, axis=1)
    assert len(cells) == lengths.sum()
    for piece, length in enumerate(lengths):  # over time, each piece in its order
        np.testing.assert_array_equal(inside[pieces == piece], np.arange(length))


def test_lanes_are_balanced():
    """Catches: all documents in one lane."""
    batches = list(lanes(np.full(40, 10), 10, 4))
    assert len(batches) == 10
    assert all(len(places.at) == 40 for places in batches)


@pytest.mark.parametrize(("context", "stride"), [(1, 1), (8, 0), (8, 9)])
def test_windows_out_of_range_are_refused(context, stride):
    """Catches: a stride that leaves tokens out."""
    with pytest.raises(RequestError, match="must be"):
        windows(np.array([0, 20]), context, stride, 1)


class Folding:
    """Encodes letters by their lower case."""

    lossless = True

    def encode_batch(self, texts):
        return [np.frombuffer(text.lower().encode(), np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids):
        return bytes(ids.astype(np.uint8).tolist()).decode()


def test_texts_are_lossless_if_all_come_back():
    """Catches: a round trip that is believed, characters counted for bytes."""
    assert tokenize(Folding(), ["abc", "é"]).lossless
    found = tokenize(Folding(), ["abc", "É", ""])
    assert not found.lossless
    assert found.byte_counts.tolist() == [3, 2, 0]
    assert found.offsets.tolist() == [0, 3, 5, 5]
    with pytest.raises(RequestError, match="no documents"):
        tokenize(Folding(), [])
