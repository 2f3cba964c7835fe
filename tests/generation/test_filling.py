"""Laws of filling masks."""

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.generation.filling import MaskedFiller, fill


@pytest.fixture(scope="module")
def run(encoder, letters):
    def run(texts, **options):
        options = {"hyper": encoder.hyper, **options}
        return fill(encoder.module, encoder.params, letters, texts, **options)

    return run


def test_candidates_are_the_models_distribution(encoder, letters, run):
    """Catches: an unmasked input, a mask's place off by one for <bos>, padding that is attended to."""
    filled, longer = run(["ab[MASK]d<mask>", "abcdefghijkl[MASK]"])
    probabilities = np.exp(encoder.log_probs([1, 5, 6, 3, 8, 3, 2]))
    assert len(filled.candidates) == 2
    for candidates, place in zip(filled.candidates, (3, 5)):
        best = np.argsort(-probabilities[place])[:5]
        assert [text for text, _ in candidates] == [
            letters.token_text(int(token)) for token in best
        ]
        np.testing.assert_allclose(
            [p for _, p in candidates], probabilities[place][best], rtol=1e-5
        )  # float32 sums in another order
    first, second = (probabilities[place].argmax() for place in (3, 5))
    assert filled.text == letters.decode([5, 6, first, 8, second])
    assert longer.text.startswith("abcdefghijkl")


def test_a_text_does_not_depend_on_its_neighbours(run):
    """Catches: padding that leaks, batches that mix up rows."""
    texts = ["ab[MASK]", "[MASK]abcdefghi[MASK]"]
    together = run(texts)
    for text, filled in zip(texts, run(texts, batch_rows=1)):
        other = together[texts.index(text)]
        assert filled.text == other.text
        np.testing.assert_allclose(
            [[p for _, p in c] for c in filled.candidates],
            [[p for _, p in c] for c in other.candidates],
            rtol=1e-5,  # float32 sums in another order
        )


def test_unmasked_tokens_stay(encoder):
    """Catches: every position replaced by its likeliest token, masked tokens shown to the model."""
    tokens = np.arange(4, 12, dtype=np.int32).reshape(2, 4)
    mask = np.array([[False, True, False, False], [True, False, False, True]])
    filler = MaskedFiller(encoder.module, encoder.params, encoder.hyper, 3)
    filled = filler.fill(tokens, mask)
    np.testing.assert_array_equal(filled.tokens[~mask], tokens[~mask])
    np.testing.assert_array_equal(filled.tokens[mask], filled.candidates[mask][:, 0])
    other = filler.fill(np.where(mask, 9, tokens), mask)  # what was there is not seen
    np.testing.assert_array_equal(other.probabilities, filled.probabilities)


@pytest.mark.parametrize(
    ("texts", "options", "match"),
    [
        (["abc"], {}, r"no \[MASK\]"),
        (["a" * 62 + "[MASK]"], {}, "65 tokens; the model reads 64"),
        (["[MASK]"], {"top_k": 0}, "top_k=0"),
        (["[MASK]"], {"top_k": 18}, "top_k=18"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(run, texts, options, match):
    """Catches: a text cut silently, a text returned as it came."""
    with pytest.raises(RequestError, match=match):
        run(texts, **options)
