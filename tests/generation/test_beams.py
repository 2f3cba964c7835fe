"""Laws of beam search."""

import itertools
from typing import Any

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.generation.beams import Beams
from ablax.generation.decoders import NeuralDecoder, NgramDecoder
from ablax.generation.generate import complete
from ablax.generation.loop import Compiled
from ablax.generation.samplers import row_keys
from ablax.generation.sampling import Controls, Sampling
from ablax.generation.stepwise import Stepwise
from ablax.models.ngram import NgramConfig

GREEDY = Sampling(temperature=0)
EOS = 2
STOPS = [EOS, 0, 5]


class Table:
    """A decoder of V tokens that looks at the last one and at how many there were."""

    def __init__(self, vocab_size, steps=9, scale=1.0, seed=0):
        logits = np.random.default_rng(seed).normal(size=(steps, vocab_size, vocab_size)) * scale
        self.logits = logits.astype(np.float32)
        self.log_probs = np.log(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))

    def start(self, prompts, new_tokens):
        del new_tokens
        return self.step(0, np.array([prompt[-1] for prompt in prompts]))

    def step(self, cache, tokens):
        return self.logits[cache, np.asarray(tokens)], cache + 1

    def rows(self, cache, rows):
        del rows
        return cache


def all_texts(vocab_size, length):
    """Every continuation that ends with EOS or at `length`."""
    for n in range(1, length + 1):
        for text in itertools.product(range(vocab_size), repeat=n):
            if EOS not in text[:-1] and (n == length or text[-1] == EOS):
                yield text


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 2.5])
def test_with_a_beam_for_each_prefix_it_is_the_best_of_all_texts(penalty):
    """Catches: a length that counts the prompt, scores of ended texts that are lost, an end that comes too early,
    places without a text among the best."""
    table, length = Table(4), 3
    found = Stepwise(table).search(
        [[1]], GREEDY.controls([EOS]), length, Beams(40, penalty, "never")
    )
    assert found.scores is not None
    scores = {}
    for text in all_texts(4, length):
        steps = zip(range(length), (1, *text), text)
        scores[text] = sum(table.log_probs[step] for step in steps) / len(text) ** penalty
    best = sorted(scores, key=lambda text: -scores[text])
    assert len(best) == 40 == np.isfinite(found.scores).sum()
    for row, text in enumerate(best[:20]):
        assert found.tokens[row, : found.counts[row]].tolist() == list(text)
        assert found.scores[row] == pytest.approx(scores[text], rel=1e-5)
        total = found.log_probs[row, : found.counts[row]].sum() / len(text) ** penalty
        assert found.scores[row] == pytest.approx(total, rel=1e-5)


def test_never_waits_for_what_a_longer_text_may_still_score():
    """Catches: the present length in place of the longest one, which says that no better text can come."""
    table, rules = Table(6, seed=3), GREEDY.controls([EOS, 0])
    likely, possible = (
        Stepwise(table).search([[1]], rules, 8, Beams(3, early_stopping=rule))
        for rule in (False, "never")
    )
    assert likely.scores is not None
    assert possible.scores is not None
    assert likely.counts.tolist() == [6, 2, 6]
    assert possible.counts.tolist() == [8, 6, 2]
    np.testing.assert_allclose(likely.scores[:2], possible.scores[1:], rtol=1e-5)
    assert possible.scores[0] > likely.scores[0]


def test_where_there_are_fewer_texts_than_beams_the_rest_is_none():
    """Catches: the same text several times, in the places of the beams that started without one."""
    found = Stepwise(Table(3)).search([[1]], GREEDY.controls([EOS]), 3, Beams(20))
    texts = set(all_texts(3, 3))
    assert len(texts) == 15 == np.isfinite(found.scores).sum()
    assert {tuple(found.tokens[row, : found.counts[row]].tolist()) for row in range(15)} == texts


class Torch:
    """A decoder that asks a model of transformers, without its cache."""

    def __init__(self, torch, model):
        self.torch, self.model = torch, model

    def start(self, prompts, new_tokens):
        del new_tokens
        text = np.array(prompts)
        with self.torch.no_grad():
            logits = self.model(self.torch.tensor(text)).logits[:, -1].numpy()
        return logits, text

    def step(self, cache, tokens):
        return self.start(np.concatenate([cache, np.asarray(tokens)[:, None]], axis=1), 0)

    def rows(self, cache, rows):
        return cache[rows]


@pytest.fixture(scope="module")
def theirs():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 13, "n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(
        **shape, bos_token_id=0, eos_token_id=EOS, initializer_range=1.0
    )
    return torch, transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"early_stopping": True},
        {"early_stopping": "never", "length_penalty": 0.3},
        {"length_penalty": -1.0},
        {"length_penalty": 0.0, "early_stopping": "never"},
        {"repetition_penalty": 1.5, "min_new_tokens": 4},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_equals_transformers(options, theirs):
    """Catches: candidates behind the first K that end a text, a penalty before the logarithm, a row that goes on
    after its end, another rule for the end."""
    torch, model = theirs
    prompts = [[1, 5, 6], [1, 7, 7], [4, 4, 4]]
    beams: dict[str, Any] = {"num_beams": 3, **options}
    with torch.no_grad():
        expected = model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(3, 3, dtype=torch.long),
            max_new_tokens=10,
            num_return_sequences=3,
            do_sample=False,
            eos_token_id=STOPS,
            pad_token_id=EOS,
            output_scores=True,
            return_dict_in_generate=True,
            **beams,
        )
    sampling = {
        name: beams.pop(name) for name in ("repetition_penalty", "min_new_tokens") if name in beams
    }
    controls = Sampling(temperature=0, **sampling).controls(STOPS)
    found = Stepwise(Torch(torch, model)).search(prompts, controls, 10, Beams(**beams))
    np.testing.assert_allclose(found.scores, expected.sequences_scores.numpy(), rtol=1e-4)
    for row, text in enumerate(expected.sequences[:, 3:].numpy()):
        count = found.counts[row]
        assert found.tokens[row, :count].tolist() == text[:count].tolist()
        assert set(text[count:]) <= {EOS}
    assert len(set(found.counts.tolist())) > 1


PROMPTS = [[5, 6, 7, 8, 9, 10], [4], [11, 12, 4]]
PENALISED = Sampling(temperature=0, repetition_penalty=1.3, presence_penalty=0.5, logit_bias={7: 1})
FOUR = Beams(4, 0.8)


def engine(model):
    return Compiled(model.module, model.params, model.hyper, vocab_size=17, max_length=64)


def controls(end):
    return Controls.stack([PENALISED.controls([end, end + 1])] * 3)


def test_one_program_finds_what_the_steps_find(decoder):
    """Catches: caches or histories that do not follow their beams, a row's cache for another's."""
    model = decoder
    found = engine(model).search(PROMPTS, controls(6), (12, 5, 9), FOUR, alternatives=2)
    steps = Stepwise(NeuralDecoder(model.module, model.params, model.hyper))
    expected = steps.search(PROMPTS, controls(6), (12, 5, 9), FOUR, alternatives=2)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)  # float32, logits of tens
    np.testing.assert_array_equal(found.counts, expected.counts)
    for row, count in enumerate(found.counts):
        text, prompt = found.tokens[row, :count], PROMPTS[row // 4]
        np.testing.assert_array_equal(text, expected.tokens[row, :count])
        given = model.log_probs([*prompt, *text])[len(prompt) - 1 : -1]
        said = given[np.arange(count), text]
        np.testing.assert_allclose(found.log_probs[row, :count], said, atol=1e-4)
        best = np.argsort(-given, axis=-1)[:, :2]
        np.testing.assert_array_equal(found.top_tokens[row, :count, :2], best)
    assert found.counts.max() <= 12
    assert found.counts[4:8].max() <= 5


def test_a_prompts_texts_do_not_depend_on_its_neighbours(mean):
    """Catches: a search that ends for all once it ends for one, ends of one row for all."""
    together = engine(mean).search(PROMPTS, controls(6), (12, 5, 9), FOUR)
    for row, (prompt, limit) in enumerate(zip(PROMPTS, (12, 5, 9))):
        alone = engine(mean).search([prompt], PENALISED.controls([6, 7]), limit, FOUR)
        assert together.scores is not None
        np.testing.assert_array_equal(together.counts[4 * row : 4 * row + 4], alone.counts)
        for beam, count in enumerate(alone.counts):
            np.testing.assert_array_equal(
                together.tokens[4 * row + beam, :count], alone.tokens[beam, :count]
            )


def test_one_beam_is_greedy(mean):
    """Catches: a search that goes on behind its <eos>, a penalty that counts the prompt."""
    # A search divides log-probabilities by a repetition penalty, as transformers do, and not logits.
    sampling = Sampling(temperature=0, presence_penalty=0.5, logit_bias={7: 1})
    rules, keys = sampling.controls([6, 7]), row_keys(0, np.arange(3), np.zeros(3))
    found = engine(mean).search(PROMPTS, rules, 16, Beams(1))
    greedy = engine(mean).decode(PROMPTS, keys, rules, 16)
    np.testing.assert_array_equal(found.counts, greedy.counts)
    for row, count in enumerate(greedy.counts):
        np.testing.assert_array_equal(found.tokens[row, :count], greedy.tokens[row, :count])


def test_completions_come_best_first(letters):
    """Catches: beams of one prompt given to another, scores or a text's end lost on the way."""
    tokens = np.tile(letters.encode("abcabd"), 20)
    model = NgramConfig(order=3).fit(tokens, np.arange(0, 121, 6), 17, 1, 2)
    ngram = Stepwise(NgramDecoder(model))
    options = {"max_new_tokens": 4, "beams": Beams(3), "num_return_sequences": 2}
    for prompt, found in zip("abc", complete(ngram, letters, list("abc"), **options)):
        assert len(found) == 2
        assert found[0].score >= found[1].score
        for one in found:
            assert one.score == pytest.approx(sum(one.log_probs) / len(one.tokens), rel=1e-5)
        (alone,) = complete(ngram, letters, [prompt], **options)
        assert [one.text for one in alone] == [one.text for one in found]
    options["beams"] = Beams(3, length_penalty=0.0)
    best = complete(ngram, letters, ["abcab"], **options)[0][0]
    assert (best.text, best.finish_reason) == ("d", "eos")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_return_sequences": 4}, "num_return_sequences=4 exceeds num_beams=3"),
        ({"sampling": Sampling(top_k=4)}, "top_k=4 filters what is drawn"),
        ({"sampling": Sampling(temperature=0.5)}, r"temperature=0\.5 is for drawing"),
        ({"stop": ["a"]}, "is not looked for by a search"),
    ],
)
def test_what_a_search_cannot_do_is_refused(letters, options, match):
    """Catches: a setting that is ignored in silence."""
    with pytest.raises(RequestError, match=match):
        complete(Stepwise(Table(17)), letters, ["a"], beams=Beams(3), **options)


@pytest.mark.parametrize(
    "values", [{"num_beams": 0}, {"length_penalty": float("nan")}, {"early_stopping": "always"}]
)
def test_values_out_of_range_are_refused_by_name(values):
    """Catches: a check that is missing or names another field."""
    (name,) = values
    with pytest.raises(RequestError, match=f"{name}=.* must be"):
        Beams(**values)
