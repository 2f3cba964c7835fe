"""Laws of masked scores."""

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.evaluation.masked import score_masked, score_pseudo_likelihood
from ablax.evaluation.scores import totals
from ablax.objectives.batch import Vocabulary
from ablax.objectives.masked import MaskedConfig

CONTEXT = 8
RTOL = 2e-5  # float32 logits; attention adds in another order when rows are laid out otherwise
OPTIONS = {"bos": 1, "eos": 2, "context_length": CONTEXT, "batch_rows": 4}
VOCABULARY = Vocabulary(size=17, special=np.arange(17) < 4, word_starts=np.ones(17, bool), mask=3)


@pytest.fixture(scope="module")
def pseudo(encoder, documents):
    def run(**options):
        return score_pseudo_likelihood(
            encoder.module,
            encoder.params,
            documents,
            hyper=encoder.hyper,
            **{"mask": 3, **OPTIONS, **options},
        )

    return run


@pytest.fixture(scope="module")
def masked(encoder, documents):
    def run(**options):
        return score_masked(
            encoder.module,
            encoder.params,
            documents,
            objective=MaskedConfig(rate=0.3),
            vocabulary=VOCABULARY,
            hyper=encoder.hyper,
            **{**OPTIONS, **options},
        )

    return run


def test_pseudo_likelihood_masks_one_token_at_a_time(pseudo, encoder, documents):
    """Catches: a mask at the wrong place, marks that count, copies that see each other."""
    scores, identity = pseudo()
    for index, (begin, end) in enumerate(zip(documents.offsets[:-1], documents.offsets[1:])):
        text = [1, *documents.tokens[begin:end].tolist(), 2]
        nats = 0.0
        for place in range(1, len(text) - 1):
            start = place // CONTEXT * CONTEXT
            shown = text[start : start + CONTEXT].copy()
            shown[place - start] = 3
            nats -= encoder.log_probs(shown)[place - start][text[place]]
        np.testing.assert_allclose(scores.nats[index], nats, rtol=RTOL)
    np.testing.assert_array_equal(scores.tokens, np.diff(documents.offsets))
    np.testing.assert_array_equal(scores.bytes, documents.byte_counts * (scores.tokens > 0))
    assert identity.to_dict()["comparable"] is False
    assert "both sides" in identity.to_dict()["reason"]


def test_every_and_max_documents_bound_the_cost(pseudo, documents):
    """Catches: bytes of tokens that were not scored, documents taken from the front only."""
    whole, _ = pseudo()
    scores, identity = pseudo(every=3, max_documents=6)
    lengths = np.diff(documents.offsets)
    chosen = np.arange(12) % 2 == 0
    np.testing.assert_array_equal(scores.tokens, np.where(chosen, -(-lengths // 3), 0))
    assert (scores.nats <= whole.nats).all()
    np.testing.assert_allclose(scores.bytes, 2 * scores.tokens)  # two bytes a token in these
    assert (
        identity.to_dict()["details"] | {"every": 3, "documents": 6}
        == (identity.to_dict()["details"])
    )
    for name in ("every", "max_documents"):
        with pytest.raises(RequestError, match=f"{name}=0"):
            pseudo(**{name: 0})


def test_the_masking_is_the_same_each_time_and_for_any_batch(masked, documents):
    """Catches: a masking seeded by row, so that another packing hides other tokens."""
    first, identity = masked()
    again, _ = masked()
    np.testing.assert_array_equal(first.nats, again.nats)
    other, _ = masked(batch_rows=2)
    np.testing.assert_array_equal(first.tokens, other.tokens)
    np.testing.assert_allclose(first.nats, other.nats, rtol=RTOL)
    seeded, _ = masked(seed=1)
    assert (first.nats != seeded.nats).any()
    lengths = np.diff(documents.offsets)
    assert first.tokens[lengths == 0].sum() == 0
    assert 0.2 < first.tokens.sum() / lengths.sum() < 0.5
    assert set(totals(first, identity)) == {
        "documents",
        "tokens",
        "bytes",
        "masked_nats_per_token",
        "masked_accuracy",
    }
