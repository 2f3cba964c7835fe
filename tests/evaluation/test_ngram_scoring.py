"""n-gram scores stand on the same ruler as neural ones."""

import dataclasses
import itertools

import numpy as np
import pytest

from ablax.evaluation.ngram_scoring import score_documents_by_ngram
from ablax.models.ngram import NgramConfig


@pytest.mark.parametrize(("bos", "eos"), [(1, 2), (None, 2), (None, None), (1, None)])
def test_sums_are_those_of_the_conditionals(documents, bos, eos):
    """Catches: nats shifted by the marks, a first token counted without context, contexts across documents."""
    # Three words only: contexts that reach into the document before would be known ones.
    documents = dataclasses.replace(documents, tokens=documents.tokens % 3 + 4)
    tokens, offsets = documents.tokens, documents.offsets
    model = NgramConfig(order=3).fit(tokens, offsets, 17, bos, eos)
    scores, identity = score_documents_by_ngram(model, documents, accuracy=True)
    for index, (begin, end) in enumerate(itertools.pairwise(offsets)):
        text = [t for t in (bos, *tokens[begin:end].tolist(), eos) if t is not None]
        nats = correct = 0.0
        for place in range(1, len(text)):
            context = np.array([[-1, -1, *text[:place]][-2:]])
            log_probs = model.log_probs(context)[0]
            nats -= log_probs[text[place]]
            correct += log_probs.argmax() == text[place]
        assert scores.nats[index] == pytest.approx(nats, rel=1e-12)
        assert scores.correct[index] == correct
        assert scores.tokens[index] == max(0, len(text) - 1)
    assert identity.first_token is (bos is not None)
    fast, _ = score_documents_by_ngram(model, documents)
    np.testing.assert_array_equal(fast.nats, scores.nats)
    assert np.isnan(fast.correct).all()
