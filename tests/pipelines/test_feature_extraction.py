"""Feature extraction: a state per token, whatever stands beside a text."""

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.pipelines.pipeline import pipeline


@pytest.fixture(scope="module")
def extract(masked):
    return pipeline("feature-extraction", masked, return_tensors=True)


def states(model, ids) -> np.ndarray:
    """By the module itself."""
    tokens = np.array([ids], np.int32)
    positions, ones = np.arange(len(ids), dtype=np.int32)[None], np.ones_like(tokens)
    found, _ = model.module.apply(
        {"params": model.params}, tokens, positions, ones, hyper={}, method="features"
    )
    return np.asarray(found)[0]


def framed(model, text) -> list[int]:
    specials = model.tokenizer.specials
    return [specials.bos, *model.tokenizer.encode(text).tolist(), specials.eos]


def test_a_state_per_token(extract, masked):
    """Catches: padding among the tokens, or seen by them."""
    (found,) = extract("abc")
    assert found.shape == (5, 16)
    np.testing.assert_allclose(found, states(masked, framed(masked, "abc")), rtol=1e-5)  # jit
    nested = extract("abc", return_tensors=False)
    assert [len(nested), len(nested[0]), len(nested[0][0])] == [1, 5, 16]
    assert isinstance(nested[0][0][0], float)


def test_a_batch_is_each_alone(extract):
    """Catches: a row that sees its neighbour's padding; results in the order of lengths."""
    texts = ["abcdefgh", "a", "abcd"]
    for one, text in zip(extract(texts), texts, strict=True):
        np.testing.assert_allclose(one, extract(text), rtol=1e-5)  # shapes of programs differ
    for one, text in zip(extract(texts, batch_size=1), texts, strict=True):
        np.testing.assert_allclose(one, extract(text), rtol=1e-5)


def test_pooling(extract):
    (whole,) = extract("abc")
    np.testing.assert_allclose(extract("abc", pooling="mean"), whole.mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(extract("abc", pooling="cls"), whole[0])
    vector = extract("abc", pooling="mean", normalize=True)
    assert np.linalg.norm(vector) == pytest.approx(1)
    np.testing.assert_allclose(
        np.linalg.norm(extract("ab", normalize=True)[0], axis=1), 1, rtol=1e-5
    )
    assert len(extract("abc", pooling="mean", return_tensors=False)) == 16


def test_a_long_text_is_refused_or_cut_or_read_in_windows(extract, masked):
    """Catches: a text that is cut though nobody asked; a token that is read twice, or with nothing before it."""
    text = "abcdefghij" * 7
    ids = framed(masked, text)
    with pytest.raises(RequestError, match="72 tokens; 48 are read"):
        extract(text)
    (cut,) = extract(text, truncation=True)
    kept = [*ids[:47], ids[-1]]
    np.testing.assert_allclose(cut, states(masked, kept), rtol=1e-5)
    (whole,) = extract(text, truncation="stride")
    assert len(whole) == len(ids)
    np.testing.assert_allclose(whole[:48], states(masked, ids[:48]), rtol=1e-5)
    np.testing.assert_allclose(whole[48:], states(masked, ids[24:])[24:], rtol=1e-5)
    short = extract(text, truncation="stride", max_length=10)[0]
    assert len(short) == len(ids)
    np.testing.assert_allclose(short[20:25], states(masked, ids[15:25])[5:], rtol=1e-5)


def test_a_causal_model_has_states_too(causal):
    """Catches: an <eos> that nothing follows."""
    found = pipeline("feature-extraction", causal)("ab")
    assert len(found[0]) == 3
    with pytest.raises(RequestError, match="sees no other"):
        pipeline("feature-extraction", causal, pooling="cls")("ab")


@pytest.mark.parametrize(
    ("options", "told"), [({"pooling": "max"}, "'mean', 'cls' or None"), ({"pool": 1}, "pooling")]
)
def test_what_is_impossible_is_refused(extract, options, told):
    with pytest.raises(RequestError, match=told):
        extract("ab", **options)
