"""Laws of scoring: sums are those of each document alone, however batches are made."""

import dataclasses
import itertools

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.evaluation import scoring
from ablax.evaluation.pieces import Documents
from ablax.evaluation.scoring import score_documents

CONTEXT = 8
RTOL = 2e-5  # float32 logits; attention adds in another order when rows are laid out otherwise


def framed_documents(documents, bos, eos):
    for begin, end in zip(documents.offsets[:-1], documents.offsets[1:]):
        text = [bos, *documents.tokens[begin:end].tolist(), eos]
        yield [token for token in text if token is not None]


def brute_force(model, text, context, stride):
    """Nats, tokens and correct of one text, token by token with its own window."""
    nats = tokens = correct = 0.0
    for target in range(1, len(text)):
        place = target - 1
        steps = max(0, -(-(place + 1 - context) // stride))  # windows moved until it is inside
        start = steps * stride
        row = model.log_probs(text[start : place + 1])[-1]
        nats -= row[text[target]]
        tokens += 1
        correct += row.argmax() == text[target]
    return nats, tokens, correct


@pytest.fixture(scope="module")
def score(decoder, documents):
    def run(model=decoder, store=documents, **options):
        options = {"bos": 1, "eos": 2, "context_length": CONTEXT, "batch_rows": 4, **options}
        return score_documents(model.module, model.params, store, hyper=model.hyper, **options)

    return run


@pytest.mark.parametrize(
    ("bos", "eos", "stride"), [(1, 2, None), (1, 2, 3), (None, 2, None), (None, None, 8)]
)
def test_sums_are_those_of_each_document_alone(score, decoder, documents, bos, eos, stride):
    """Catches: targets across documents, positions that go on, windows that count twice, marks left out."""
    scores, identity = score(bos=bos, eos=eos, stride=stride)
    expected = [
        brute_force(decoder, text, CONTEXT, stride or CONTEXT)
        for text in framed_documents(documents, bos, eos)
    ]
    nats, tokens, correct = np.array(expected).T
    np.testing.assert_allclose(scores.nats, nats, rtol=RTOL)
    np.testing.assert_array_equal(scores.tokens, tokens)
    np.testing.assert_array_equal(scores.correct, correct)
    np.testing.assert_array_equal(scores.bytes, documents.byte_counts)
    assert identity.first_token is (bos is not None)
    assert (identity.context_length, identity.stride) == (CONTEXT, stride or CONTEXT)


def test_sums_do_not_depend_on_batches_or_neighbours(score, documents):
    """Catches: a last batch whose empty rows count, a segment that sees its neighbour."""
    whole, _ = score()
    order = np.random.default_rng(1).permutation(len(documents.byte_counts))
    parts = [documents.tokens[documents.offsets[i] : documents.offsets[i + 1]] for i in order]
    shuffled = dataclasses.replace(
        documents,
        tokens=np.concatenate(parts),
        offsets=np.concatenate([[0], np.cumsum([len(part) for part in parts])]),
        byte_counts=documents.byte_counts[order],
    )
    for store, rows, places in ((shuffled, 4, order), (documents, 1, slice(None))):
        scores, _ = score(store=store, batch_rows=rows)
        np.testing.assert_allclose(scores.nats, whole.nats[places], rtol=RTOL)
        np.testing.assert_array_equal(scores.correct, whole.correct[places])


def test_a_stream_is_one_text_whose_nats_go_to_their_documents(score, decoder, documents):
    """Catches: a window's first token left out, nats given to the document of the context."""
    scores, identity = score(bos=None, eos=None, document_rule="stream")
    text = documents.tokens.tolist()
    owner = np.repeat(np.arange(12), np.diff(documents.offsets))
    nats = np.zeros(12)
    for target in range(1, len(text)):
        start = (target - 1) // CONTEXT * CONTEXT
        nats[owner[target]] -= decoder.log_probs(text[start:target])[-1][text[target]]
    np.testing.assert_allclose(scores.nats, nats, rtol=RTOL)
    assert scores.tokens.sum() == len(text) - 1
    assert identity.document_rule == "stream"


@pytest.mark.parametrize("rule", ["document", "stream"])
def test_a_recurrent_model_has_read_the_whole_text(score, lstm, documents, rule):
    """Catches: a state lost between batches, kept from the document before, or changed by padding."""
    scores, identity = score(lstm, document_rule=rule)
    framed = list(framed_documents(documents, 1, 2))
    owner = np.repeat(np.arange(12), [len(text) for text in framed])
    texts, starts = framed, np.cumsum([0] + [len(text) for text in framed])
    if rule == "stream":  # four equal parts of one text, each from an empty state
        whole = list(itertools.chain(*framed))
        starts = np.arange(4) * -(-(len(whole) - 1) // 4)
        texts = [whole[s : s + starts[1] + 1] for s in starts]
    nats = np.zeros(12)
    for start, text in zip(starts, texts):
        log_probs = lstm.log_probs(text[:-1])
        for place, target in enumerate(text[1:]):
            nats[owner[start + place + 1]] -= log_probs[place][target]
    np.testing.assert_allclose(scores.nats, nats, rtol=RTOL)
    assert scores.tokens.sum() == sum(len(text) - 1 for text in texts)
    assert identity.context_length is None
    with pytest.raises(RequestError, match="carries its state"):
        score(lstm, stride=4)


def test_at_most_two_programs_are_in_flight(monkeypatch):
    """Catches: batches dispatched without waiting, which exhausts devices and memory."""
    flying, most = set(), []

    class Result:
        def __init__(self, dtype):
            self.dtype = dtype
            flying.add(id(self))

        def __array__(self, dtype=None, copy=None):
            flying.discard(id(self))
            return np.zeros((1, 2), self.dtype)

    def fake(module, params, hyper, batch, carry, over):
        results = Result(float), Result(bool), carry
        most.append(len(flying) // 2)
        return results

    monkeypatch.setattr(scoring, "score_batch", fake)
    batch = {
        "tokens": np.zeros((1, 2), np.int32),
        "loss_weights": np.ones((1, 2), np.float32),
        "document_ids": np.array([[0, 1]], np.int32),
    }
    sums = scoring.sum_documents(None, None, {}, [batch] * 7, 2)
    assert max(most) == 2
    assert not flying
    assert sums[1].tolist() == [7, 7]


def test_documents_in_one_batch_are_put_where_the_caller_says(score):
    """Catches: batches that never reach the caller's devices."""
    seen = []

    def put(batch):
        seen.append({name: array.shape for name, array in batch.items()})
        return batch

    score(put=put)
    names = ("tokens", "targets", "positions", "segment_ids")
    assert seen
    assert all(shapes == dict.fromkeys(names, (4, CONTEXT)) for shapes in seen)


def test_edges(score):
    """Catches: a crash on documents without tokens or predictions, positions beyond the table."""
    empty = Documents(np.zeros(0, np.uint16), np.array([0, 0, 0]), np.zeros(2, int), True)
    scores, _ = score(store=empty)
    assert scores.tokens.tolist() == [1, 1]  # <eos> after <bos>
    scores, _ = score(store=empty, bos=None)
    assert scores.tokens.tolist() == [0, 0]  # nothing comes before <eos>
    with pytest.raises(RequestError, match="stride=9"):
        score(stride=9)
    with pytest.raises(RequestError, match="context of 65 tokens exceeds the model's 64"):
        score(context_length=65)
