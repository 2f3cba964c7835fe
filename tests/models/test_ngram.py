"""Laws of the n-gram model; a slow, plain one in `plain_kneser_ney` is the oracle."""

import dataclasses
import importlib.util
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablax import config as configuration
from ablax.config import RequestError
from ablax.models.ngram import Ngram, NgramConfig
from models.plain_kneser_ney import PlainKneserNey

BENCHMARK = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "benchmarks" / "ngram.py"
VOCAB_SIZE = 7  # tokens 0 ... 4 in documents, 5 and 6 for the marks
MARKS = [(5, 6), (6, 6), (None, 6), (5, None), (None, None)]  # <bos>, <eos>
quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def flat(documents, dtype=np.int32):
    tokens = np.array([token for document in documents for token in document], dtype)
    return tokens, np.cumsum([0, *map(len, documents)], dtype=np.int64)


def random_documents(seed, num_documents=60, length=40, types=5, first=0):
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, types + 1)
    sizes = rng.integers(0, length, num_documents)
    draw = [rng.choice(types, size, p=weights / weights.sum()) for size in sizes]
    return [(first + tokens).tolist() for tokens in draw]


def scored_pairs(documents, bos, eos):
    """(context, token) of every scored token, in the order of `score`."""
    for document in documents:
        begin = [] if bos is None else [bos]
        marked = [*begin, *document, *([] if eos is None else [eos])]
        for i in range(len(begin), len(marked)):
            yield marked[:i], marked[i]


def right_aligned(contexts, width):
    rows = [([-1] * width + list(context))[len(context) :][:width] for context in contexts]
    return np.array(rows).reshape(len(rows), width)


corpora = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=8).filter(any)
contexts_of_any_tokens = st.lists(
    st.lists(st.integers(-1, VOCAB_SIZE - 1), min_size=4, max_size=4), min_size=1, max_size=4
)


@quick
@given(corpora, st.sampled_from(MARKS), st.integers(1, 5), contexts_of_any_tokens)
def test_probabilities_sum_to_one(documents, marks, order, contexts):
    """Bug: the backoff weight of a context leaves out what is taken from counts of 3 and more."""
    model = NgramConfig(order).fit(*flat(documents), VOCAB_SIZE, *marks)
    probabilities = np.exp(model.log_probs(np.array(contexts)))
    assert probabilities.shape == (len(contexts), VOCAB_SIZE)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-13)
    bos, eos = marks
    possible = np.arange(VOCAB_SIZE) != (-1 if bos is None or bos == eos else bos)
    assert (probabilities[:, possible] > 0).all()
    assert (probabilities[:, ~possible] == 0).all()


@quick
@given(corpora, corpora, st.sampled_from(MARKS), st.integers(1, 5))
def test_tiny_corpora_equal_the_plain_implementation(documents, others, marks, order):
    """Bug: the n-grams after <bos> are counted by left neighbours, of which they have none."""
    model = NgramConfig(order).fit(*flat(documents), VOCAB_SIZE, *marks)
    assert_equals_plain(model, documents, documents + others)


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("order", [2, 3, 4])
def test_estimated_discounts_equal_the_plain_implementation(order, marks):
    """Bug: D3+ is estimated from the counts of 3 and of "4 or more" instead of 4."""
    documents = random_documents(order, types=40, first=VOCAB_SIZE)
    vocab_size = VOCAB_SIZE + 50
    model = NgramConfig(order).fit(*flat(documents), vocab_size, *marks)
    assert order not in model.fallback_orders
    assert_equals_plain(
        model, documents, random_documents(order + 1, 10, types=45, first=VOCAB_SIZE)
    )


def assert_equals_plain(model, documents, scored):
    order, fallback = model.config.order, model.config.discount_fallback
    plain = PlainKneserNey(documents, order, model.vocab_size, model.bos, model.eos, fallback)
    np.testing.assert_allclose(model.discounts, plain.discounts, rtol=1e-12)
    pairs = list(scored_pairs(scored, model.bos, model.eos))
    expected = [-math.log(plain.probability(*pair)) for pair in pairs]
    np.testing.assert_allclose(model.score(*flat(scored)), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("order", [1, 2, 5])
def test_score_equals_log_probs(order, marks):
    """Bug: the n-grams of a document go on into the next one (`before[starts] = -1` is missing)."""
    model = NgramConfig(order).fit(*flat(random_documents(0)), VOCAB_SIZE, *marks)
    documents = [*random_documents(1, 20), [], [4]]
    contexts, tokens = zip(*scored_pairs(documents, *marks))
    rows = model.log_probs(right_aligned(contexts, 40))
    expected = -rows[np.arange(len(tokens)), list(tokens)]
    np.testing.assert_allclose(model.score(*flat(documents)), expected, rtol=1e-12, atol=1e-13)


def test_a_documents_score_does_not_depend_on_its_neighbours():
    """Bug: the same as above, seen through `score` alone; and a wrong place in the result."""
    model = NgramConfig(3).fit(*flat(random_documents(0)), VOCAB_SIZE, 5, 6)
    documents = random_documents(1, 10)
    together, (_, offsets) = model.score(*flat(documents)), flat(documents)
    for i, document in enumerate(documents):
        alone = model.score(*flat([document]))
        np.testing.assert_array_equal(together[offsets[i] + i : offsets[i + 1] + i + 1], alone)


def test_contexts_of_any_width():
    """Bug: a context's first tokens are taken instead of its last."""
    model = NgramConfig(3).fit(*flat(random_documents(0)), VOCAB_SIZE, None, None)
    expected = model.log_probs(np.array([[1, 2]]))
    for row in ([4, 3, 1, 2], [-1, 1, 2], [0, -1, 1, 2]):
        np.testing.assert_array_equal(model.log_probs(np.array([row])), expected)
    empty = model.log_probs(np.zeros((1, 0), int))
    np.testing.assert_array_equal(model.log_probs(np.array([[1, -1]])), empty)
    np.testing.assert_array_equal(model.log_probs(np.array([[-1, -1, -1]])), empty)
    assert model.log_probs(np.zeros((0, 2), int)).shape == (0, VOCAB_SIZE)


def test_unknown_words_share_the_uniform_mass():
    """Bug: p_0 gives <bos> a part, though it is never predicted."""
    vocab_size = 100
    model = NgramConfig(3).fit(*flat(random_documents(0)), vocab_size, 98, 99)
    probabilities = np.exp(model.log_probs(np.array([[0, 1], [60, 70]])))
    unknown = probabilities[:, 5:98]
    np.testing.assert_allclose(unknown, unknown[:, :1] * np.ones(93), rtol=1e-12)
    unigrams = model.tables[0]
    assert unknown[1, 0] == pytest.approx(unigrams.backoffs[0] / 99)  # no context is known: order 1
    nats = model.score(*flat([[60, 70, 0]]))
    assert nats[1] == pytest.approx(-math.log(unknown[1, 0]))
    assert np.isfinite(nats).all()


def test_one_token_and_endless_repetition():
    """Bug: dividing by a count of counts that is zero, or by the empty total of a last context."""
    for documents in ([[0]], [[3] * 10_000], [[3, 3]] * 500, [[0, 1]]):
        for order in (1, 2, 5):
            for marks in MARKS:
                model = NgramConfig(order).fit(*flat(documents), VOCAB_SIZE, *marks)
                assert order in model.fallback_orders
                assert np.isfinite(model.score(*flat(documents))).all()
                rows = model.log_probs(np.array([[3, 3, 3, 3], [-1, -1, 0, 1]]))
                np.testing.assert_allclose(np.exp(rows).sum(-1), 1, rtol=1e-13)
    assert (
        np.exp(-NgramConfig(5).fit(*flat([[3] * 10_000]), 7, 5, 6).score(*flat([[3] * 9]))[5])
        > 0.99
    )


@pytest.mark.parametrize("dtype", [np.int64, np.uint32])
def test_token_ids_near_the_limit(dtype):
    """Bug: keys are made of tokens instead of ranks (64 bits overflow), or tokens of 32 signed bits."""
    vocab_size = 2**32
    small = random_documents(0, types=5)
    shift = vocab_size - 5
    large = [[token + shift for token in document] for document in small]
    expected = NgramConfig(5).fit(*flat(small), vocab_size, 7, 8)
    model = NgramConfig(5).fit(*flat(large, dtype), vocab_size, 7, 8)
    # The order of the tokens among themselves and the marks differs, and nothing else.
    np.testing.assert_allclose(
        model.score(*flat(large, dtype)), expected.score(*flat(small)), rtol=1e-12
    )


@pytest.mark.parametrize("marks", MARKS)
def test_saved_and_loaded_is_the_same_model(tmp_path, marks):
    """Bug: the fan-outs of the wrong order are saved; <bos> of None comes back as -1."""
    config = NgramConfig(4, discount_fallback=(0.4, 0.9, 1.3))
    model = config.fit(*flat(random_documents(0)), VOCAB_SIZE, *marks)
    path = tmp_path / "model"
    model.save(path)
    loaded = Ngram.load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert (loaded.config, loaded.vocab_size, loaded.bos, loaded.eos) == (
        config,
        VOCAB_SIZE,
        *marks,
    )
    assert loaded.parameter_count == model.parameter_count
    assert loaded.fallback_orders == model.fallback_orders
    for name in ("keys", "counts", "discounts", "shares", "backoffs"):
        for mine, theirs in zip(model.tables, loaded.tables, strict=True):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
            assert getattr(mine, name).dtype == getattr(theirs, name).dtype
    documents = flat(random_documents(1))
    np.testing.assert_array_equal(model.score(*documents), loaded.score(*documents))


def test_files_that_are_no_model(tmp_path):
    """Bug: a damaged or foreign file ends in a traceback of zipfile or NumPy."""
    with pytest.raises(RequestError, match="no such file"):
        Ngram.load(tmp_path / "absent")
    NgramConfig(3).fit(*flat(random_documents(0)), VOCAB_SIZE, 5, 6).save(tmp_path / "model")
    whole = (tmp_path / "model").read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 255
    for content in (b"", b"text", whole[:-30], whole[: len(whole) // 2], bytes(damaged)):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(RequestError, match="not an n-gram model"):
            Ngram.load(tmp_path / "bad")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(RequestError, match="not an n-gram model"):
        Ngram.load(tmp_path / "other.npz")


def test_wrong_requests():
    """Bug: a wrong corpus is counted without a word."""
    config, tokens = NgramConfig(2), np.array([1, 2, 3])
    for offsets, vocab_size, bos, eos, message in (
        ([0, 2], 7, 5, 6, "offsets"),
        ([0, 2, 1, 3], 7, 5, 6, "offsets"),
        ([], 7, 5, 6, "offsets"),
        ([0, 3], 3, 0, None, "vocab_size=3"),
        ([0, 3], 7, 7, 6, "bos=7"),
        ([0, 3], 7, 5, -1, "eos=-1"),
        ([0, 3], 7, 2, 6, "contain <bos>"),
        ([0, 3], 1, 0, None, "nothing to predict"),
    ):
        with pytest.raises(RequestError, match=message):
            config.fit(tokens, np.array(offsets, int), vocab_size, bos, eos)
    for bos, eos, offsets in ((None, None, [0]), (5, None, [0, 0]), (5, 6, [0])):
        with pytest.raises(RequestError, match="no tokens"):
            config.fit(tokens[:0], np.array(offsets), 7, bos, eos)
    model = config.fit(tokens, np.array([0, 3]), 7, 5, 6)
    with pytest.raises(RequestError, match="vocab_size=7"):
        model.score(np.array([7]), np.array([0, 1]))
    with pytest.raises(RequestError, match="vocab_size=7"):
        model.log_probs(np.array([[7]]))
    assert model.score(tokens[:0], np.array([0])).shape == (0,)


def test_knobs():
    """Bug: a knob is declared and not read."""
    with pytest.raises(RequestError, match="order=0"):
        NgramConfig(order=0)
    for wrong in ((0.0, 1.0, 1.0), (1.0, 2.1, 1.0), (1.0, 2.0)):
        with pytest.raises(RequestError, match="discount_fallback"):
            dataclasses.replace(NgramConfig(), **{"discount_fallback": wrong})
    table = {"ngram": NgramConfig}
    assert configuration.from_dict(NgramConfig, {"discount_fallback": "0.4,1,1"}).order == 5
    for preset, values in NgramConfig.PRESETS.items():
        assert configuration.choose(table, f"ngram:{preset}")().order == values["order"]
    scores = [
        config.fit(*flat([[0, 1, 2]]), VOCAB_SIZE, 5, 6).score(*flat([[0, 1, 2]])).sum()
        for config in (NgramConfig(), NgramConfig(2), NgramConfig(discount_fallback=(0.9, 1, 1)))
    ]
    assert len(set(scores)) == 3


@pytest.fixture(scope="module")
def benchmark(shared_data):
    if not (shared_data / "wikitext-2" / "train.txt").is_file():
        pytest.skip("WikiText-2 is absent")
    spec = importlib.util.spec_from_file_location("ngram_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wikitext_equals_kenlm(benchmark, shared_data):
    """Bug: what follows <bos> is counted by left neighbours; empty sentences are lost."""
    *texts, vocab_size = benchmark.corpus(shared_data / "wikitext-2")
    for order, blank_lines, num_tokens, reference in benchmark.CASES:
        train, test = texts if blank_lines else map(benchmark.without_blank_lines, texts)
        marks = {"bos": vocab_size - 2, "eos": vocab_size - 1}
        model = NgramConfig(order).fit(*train, vocab_size=vocab_size, **marks)
        nats = model.score(*test)
        assert len(nats) == num_tokens
        assert np.exp(nats.mean()) == pytest.approx(reference, abs=0.01)
        if order == 5 and blank_lines:
            lmplz = [
                [0.182087, 1.01364, 2.53778],
                [0.729716, 1.15964, 1.49569],
                [0.866965, 1.27126, 1.47995],
                [0.942337, 1.41604, 1.53705],
                [0.959168, 1.52824, 1.50737],
            ]
            np.testing.assert_allclose(model.discounts, lmplz, rtol=1e-5)
