"""Laws of probes: what is planted is found, what is not is not, and no evaluated document is fitted to."""

import collections
import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.evaluation.labels import UNASKED
from ablax.evaluation.pieces import Documents
from ablax.evaluation.probes import Labelled, score_probes
from ablax.evaluation.scores import PROBES, totals
from tiny_models import VOCAB

CLASSES = 3
OPTIONS = {"kind": "made", "classes": CLASSES, "vocab_size": VOCAB, "bos": 1, "eos": 2}


class Planted(nn.Module):
    """States tell the token that stood `back` places before, once they have been trained."""

    back: int = 1

    @nn.compact
    def features(self, tokens, positions, segment_ids, *, hyper, carry=(), train=False):
        scale = self.param("scale", nn.initializers.zeros, ())
        return scale * jax.nn.one_hot(jnp.roll(tokens, self.back, axis=1), VOCAB), carry

    def __call__(self, tokens, positions, segment_ids, *, hyper, carry=(), train=False):
        states, carry = self.features(tokens, positions, segment_ids, hyper=hyper)
        return states, carry


def planted(back=1):
    return types.SimpleNamespace(module=Planted(back), params={"scale": jnp.float32(0.3)}, hyper={})


def made(seed, label, lengths=(40, 25, 0, 33, 3, 60)):
    """Documents of random tokens, and labels by `label(tokens, rng)` of each."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(4, VOCAB, length) for length in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    documents = Documents(np.concatenate(texts), offsets, np.array(lengths), lossless=True)
    labels = np.concatenate([label(text, rng) for text in texts])
    return Labelled(documents, labels.astype(np.int8))


def of_the_token_before(tokens, rng):
    return np.concatenate([[UNASKED], tokens[:-1] % CLASSES])[: len(tokens)]


def skewed(tokens, rng):
    return (rng.random(len(tokens)) < 0.15).astype(int)


def scored(model, tested, training, **options):
    found = score_probes(
        model.module,
        model.params,
        tested,
        training=training,
        hyper=model.hyper,
        context_length=8,
        **{**OPTIONS, **options},
    )
    return {identity.measure: scores for scores, identity in found}


def rates(found):
    return {name: scores.correct.sum() / scores.tokens.sum() for name, scores in found.items()}


def test_what_is_planted_is_found():
    """Catches: states of the next place, labels of another token, an untrained model that is the trained one."""
    tested, training = made(0, of_the_token_before), made(1, of_the_token_before)
    found = scored(planted(), tested, training)
    rate = rates(found)
    assert (rate["probe"], rate["probe_centroid"]) == (1, 1)
    assert rate["probe_untrained"] == rate["probe_majority"] < 0.5
    assert rate["probe_token"] < 0.6
    assert rate["probe_control"] < 0.8
    for scores in found.values():
        np.testing.assert_array_equal(scores.tokens, [39, 24, 0, 32, 2, 59])


@pytest.mark.parametrize("family", ["decoder", "encoder", "lstm"])
def test_a_label_that_nothing_tells_is_guessed(family, request):
    """Catches: a probe that has seen what it is asked."""
    model = request.getfixturevalue(family)
    tested, training = (made(seed, skewed, (150, 90, 160)) for seed in (0, 1))
    rate = rates(scored(model, tested, training))
    assert 0.7 < rate["probe_majority"] < 1
    for name in ("probe", "probe_untrained"):
        assert rate[name] == pytest.approx(rate["probe_majority"], abs=0.01)


def test_no_evaluated_document_is_fitted_to():
    """Catches: moments of all documents; a penalty or a baseline chosen on what is evaluated."""
    tested, training = made(0, of_the_token_before, (400, 25, 9)), made(1, of_the_token_before)
    one = scored(planted(), tested, training)
    labels = tested.labels.copy()
    labels[1:400] = (labels[1:400] + 1) % CLASSES  # the first document's
    other = scored(planted(), dataclasses.replace(tested, labels=labels), training)
    for name in PROBES:
        np.testing.assert_array_equal(one[name].correct[1:], other[name].correct[1:])
    assert one["probe"].correct[0] > 0 == other["probe"].correct[0]


def test_baselines_are_counts():
    """Catches: ties and unseen tokens that are wrong in silence; counts of evaluated documents."""

    def label(tokens, rng):
        return np.where(rng.random(len(tokens)) < 0.7, tokens % CLASSES, 1)

    tested, training = (
        made(0, label),
        made(1, lambda t, rng: np.where(t == 7, UNASKED, label(t, rng))),
    )
    found = scored(planted(), tested, training)
    pairs = [
        p
        for p in zip(training.documents.tokens.tolist(), training.labels.tolist())
        if p[1] != UNASKED
    ]
    whole = collections.Counter(label for _, label in pairs).most_common(1)[0][0]
    best = {}
    for token in range(VOCAB):
        own = collections.Counter(label for other, label in pairs if other == token)
        best[token] = max(own, key=lambda one: (own[one], one == whole)) if own else whole
    right = [best[t] == y for t, y in zip(tested.documents.tokens.tolist(), tested.labels.tolist())]
    assert found["probe_token"].correct.sum() == sum(right)
    assert found["probe_majority"].correct.sum() == (tested.labels == whole).sum()


def test_the_control_shows_what_is_memorised():
    """Catches: control labels that differ between the documents that are fitted to and those that are evaluated."""
    tested, training = made(0, skewed), made(1, skewed, (300, 300))
    assert rates(scored(planted(back=0), tested, training))["probe_control"] == 1


def test_rows_do_not_matter(decoder):
    """Catches: predictions that go to another token when batches are laid out otherwise."""
    tested, training = made(0, of_the_token_before), made(1, of_the_token_before)
    one, other = (scored(decoder, tested, training, batch_rows=rows) for rows in (1, 8))
    for name in PROBES:
        np.testing.assert_allclose(one[name].correct, other[name].correct, atol=1)  # of near ties


def test_numbers_say_what_they_are():
    """Catches: nats of what has no probabilities; other labels or layers under one identity."""
    model, tested, training = planted(), made(0, skewed), made(1, skewed)
    options = {"training": training, "hyper": {}, "context_length": 8, **OPTIONS}
    results = score_probes(model.module, model.params, tested, **options)
    assert [identity.measure for _, identity in results] == list(PROBES)
    for scores, identity in results:
        assert set(totals(scores, identity)) == {
            "documents",
            "tokens",
            "bytes",
            f"{identity.measure}_accuracy",
        }
        assert identity.to_dict()["details"] == {"label": "made", "layer": 1.0, "fitted": 5}
        assert not identity.to_dict()["comparable"]


def test_one_document_cannot_choose_a_penalty():
    with pytest.raises(RequestError, match=r"evaluation\.probe_documents: 1 of 2"):
        scored(planted(), made(0, skewed), made(1, skewed, (9, 0)))
