"""Laws of choices: one conditional probability, whichever family of model gives it."""

import itertools

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.data.exact_tokenizers import ByteConfig
from ablax.data.tokenizers import build_tokenizer
from ablax.data.word_tokenizer import WordConfig
from ablax.evaluation.choices import bracket_tokens, questions, score_choices
from ablax.evaluation.pieces import frame

CONTEXT, CHOICES, MASK = 8, np.array([5, 9, 12], np.int32), 3
OPTIONS = {"bos": 1, "eos": 2, "context_length": CONTEXT, "choices": CHOICES, "count": 30}


def asked(documents, model, mask, **options):
    return score_choices(
        model.module,
        model.params,
        documents,
        hyper=model.hyper,
        mask=mask,
        **{**OPTIONS, **options},
    )


def places(documents):
    """(document, window, place in it) of each question."""
    framed, offsets = frame(documents, 1, 2)
    openers = np.zeros(len(framed), bool)
    for begin, end in itertools.pairwise(offsets):
        openers[begin:end:CONTEXT] = True
    for at in questions(framed, openers, CHOICES, 30):
        document = np.searchsorted(offsets, at, "right") - 1
        begin = offsets[document] + (at - offsets[document]) // CONTEXT * CONTEXT
        window = framed[begin : min(begin + CONTEXT, offsets[document + 1])]
        yield document, window, at - begin


@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_it_is_the_probability_given_all_others(family, request, documents):
    """Catches a causal model asked without what follows, a mask beside its place, copies that see each other."""
    model = request.getfixturevalue(family)
    nats, count, right = np.zeros((3, len(documents.byte_counts)))
    for document, window, inside in places(documents):
        logits = []
        for choice in CHOICES:
            shown = window.copy()
            shown[inside] = choice if family == "decoder" else MASK
            log_probs = model.log_probs(shown.tolist())
            if family == "decoder":
                logits.append(sum(log_probs[t - 1][shown[t]] for t in range(1, len(shown))))
            else:
                logits.append(log_probs[inside][choice])
        truth = int(np.flatnonzero(window[inside] == CHOICES)[0])
        nats[document] += np.logaddexp.reduce(logits) - logits[truth]
        count[document] += 1
        right[document] += int(np.argmax(logits)) == truth
    scores, identity = asked(documents, model, MASK if family == "encoder" else None)
    assert count.sum() > 10
    np.testing.assert_array_equal(scores.tokens, count)
    # float32 sums of a few nats of a window, in another order
    np.testing.assert_allclose(scores.nats, nats, rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(scores.correct, right)
    assert identity.measure == "choice"


def test_rows_and_batches_do_not_matter(decoder, documents):
    """Catches sums that go to another question when batches are laid out otherwise."""
    one, other = (asked(documents, decoder, None, batch_rows=rows)[0] for rows in (1, 5))
    np.testing.assert_allclose(one.nats, other.nats, rtol=2e-4, atol=2e-5)


def test_each_choice_is_asked_for_alike():
    """Catches the natural shares, by which always answering ) would look clever."""
    framed = np.array([5] * 50 + [9] * 7 + [12] * 20)
    openers = np.zeros(len(framed), bool)
    openers[50] = True
    found = framed[questions(framed, openers, CHOICES, 18)]
    assert [(found == choice).sum() for choice in CHOICES] == [6, 6, 6]
    assert not openers[questions(framed, openers, CHOICES, 77)].any()


def test_brackets_are_tokens_of_their_own():
    tokenizer = build_tokenizer(ByteConfig(), iter(["a"]), ("bos", "eos"))
    assert [tokenizer.plain_text(i) for i in bracket_tokens(tokenizer)] == [")", "]", "}"]
    words = build_tokenizer(WordConfig(), iter(["only words here"]), ())
    with pytest.raises(RequestError, match=r"evaluation\.choices"):
        bracket_tokens(words)
