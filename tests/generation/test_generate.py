"""Laws of text generation: stop strings, seeds, several sequences, refusals."""

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.data.exact_tokenizers import ByteConfig
from ablax.data.tokenizers import build_tokenizer
from ablax.generation.decoders import NgramDecoder
from ablax.generation.generate import complete, generate
from ablax.generation.prompts import tokens_to_add
from ablax.generation.sampling import Sampling
from ablax.generation.stepwise import Stepwise
from ablax.models.ngram import NgramConfig

TEXT = "abcdefghijklabcdefghijklabcdefghijklabcdefghijkl"
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def alphabet(letters):
    """An engine that goes on with the alphabet, round and round."""
    tokens = letters.encode(TEXT * 2)
    model = NgramConfig(order=2).fit(tokens, np.array([0, len(tokens)]), 17, 1, 2)
    return Stepwise(NgramDecoder(model))


@pytest.fixture(scope="module")
def sample(mean, letters):
    def run(prompts, model=mean, **options):
        options = {"max_new_tokens": 40, "seed": 5, "hyper": model.hyper, **options}
        return generate(model.module, model.params, letters, prompts, **options)

    return run


@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [
        (["fgh"], "cde", 6),
        (["l"], "cdefghijk", 10),
        (["zz", "klab", "jk"], "cdefghi", 9),  # the one that comes first, whatever its place
        (["c"], "", 1),
        (["efghij", "g"], "cdef", 5),  # the one that is whole first, though another begins earlier
        (["zz"], "cdefghijklabcdefghijklabcdefghijklabcdef", 40),
        (["klabcdefghijkl"], "cdefghij", 22),  # longer than a chunk of tokens
    ],
)
def test_stop_strings_cut_exactly_over_token_boundaries(alphabet, letters, stop, text, tokens):
    """Catches: a stop string sought in single tokens or chunks, a cut behind it, a later one first, a cut that depends
    on what the chunk says after it."""
    ((found,),) = complete(alphabet, letters, ["ab"], max_new_tokens=40, sampling=GREEDY, stop=stop)
    assert found.text == text
    assert len(found.tokens) == len(found.log_probs) == tokens
    assert found.finish_reason == ("length" if stop == ["zz"] else "stop")


def test_stop_strings_may_cut_through_bytes_of_a_character():
    """Catches: text decoded token by token, so that no token ever spells the stop string."""
    tokenizer = build_tokenizer(ByteConfig(), [], ("bos", "eos"))
    tokens = tokenizer.encode("naïve café, " * 20)
    model = NgramConfig(order=6).fit(tokens, np.array([0, len(tokens)]), 258, 0, 1)
    options = {"sampling": GREEDY, "max_new_tokens": 30}
    engine = Stepwise(NgramDecoder(model))
    ((found,),) = complete(engine, tokenizer, ["naïve c"], stop=["é, naï"], **options)
    assert (found.text, found.finish_reason) == ("af", "stop")
    ((whole,),) = complete(engine, tokenizer, ["naïve ca"], **options)
    assert whole.text.startswith("fé, naïve café, naïve caf")


def test_eos_ends_the_text_and_is_its_last_token(letters):
    """Catches: <eos> in the text, or its log-probability lost."""
    tokens = np.tile(letters.encode("abc"), 20)
    model = NgramConfig(order=3).fit(tokens, np.arange(0, 61, 3), 17, 1, 2)
    ((found,),) = complete(Stepwise(NgramDecoder(model)), letters, ["a"], sampling=GREEDY)
    assert (found.text, found.finish_reason) == ("bc", "eos")
    assert found.tokens == (6, 7, 2)
    context = model.log_probs(np.array([[6, 7]]))[0]
    assert found.log_probs[-1] == pytest.approx(context[2], abs=1e-6)  # float32 of float64


def test_a_sample_depends_on_seed_prompt_and_number_alone(sample):
    """Catches: keys by row of the batch: more prompts, samples or smaller batches change a text."""
    prompts = ["abc", "", "fghijk"]
    many = sample(prompts, num_return_sequences=4)
    assert sample(prompts, num_return_sequences=4) == many
    (few,) = sample(prompts[:1], num_return_sequences=2, batch_rows=1)
    assert [c.tokens for c in few] == [c.tokens for c in many[0][:2]]
    assert len({c.text for completions in many for c in completions}) == 12
    other = sample(prompts, num_return_sequences=4, seed=6)
    assert all(a.text != b.text for row, column in zip(many, other) for a, b in zip(row, column))


def test_stop_strings_cut_what_would_have_been_said(sample):
    """Catches: chunks that change the sample of a neural model."""
    ((whole,),) = sample(["abc"])
    stop = whole.text[20:23]
    ((cut,),) = sample(["abc"], stop=[stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.tokens == whole.tokens[: len(cut.tokens)]
    assert 20 <= len(cut.tokens) < 40


def test_prompts_that_do_not_fit_are_refused_with_numbers(sample, decoder):
    """Catches: positions that wrap silently at the table's end."""
    assert tokens_to_add([[1] * 24], 40, None, 64) == [40]
    refused = r"prompt 1 has 25 tokens; with max_new_tokens=40 .* 64"
    with pytest.raises(RequestError, match=refused):  # <bos> and 24 letters
        sample(["a", "a" * 24], model=decoder, max_new_tokens=40)


def test_a_length_of_all_bounds_each_prompt(alphabet, letters):
    """Catches: a length counted from the longest prompt, one of two bounds that is forgotten."""
    prompts, options = ["ab", "abcdef"], {"sampling": GREEDY, "add_bos": False}
    found = complete(alphabet, letters, prompts, max_length=10, **options)
    assert [len(c.tokens) for (c,) in found] == [8, 4]
    found = complete(alphabet, letters, prompts, max_length=10, max_new_tokens=5, **options)
    assert [len(c.tokens) for (c,) in found] == [5, 4]
    with pytest.raises(RequestError, match=r"prompt 1 has 6 tokens; .* max_length=6"):
        complete(alphabet, letters, prompts, max_length=6, **options)
    with pytest.raises(RequestError, match="max_length=65 exceeds the model's 64"):
        tokens_to_add([[1]], 4, 65, 64)


def test_stop_tokens_end_a_text_and_are_not_in_it(alphabet, letters):
    """Catches: only the first of several, a stop token in the text, <eos> named as the reason."""
    options = {"max_new_tokens": 20, "sampling": GREEDY}
    ((found,),) = complete(alphabet, letters, ["ab"], stop_tokens=[12, 9], **options)
    assert (found.text, found.finish_reason) == ("cd", "stop")
    assert found.tokens == (7, 8, 9)
    with pytest.raises(RequestError, match="stop_tokens has token 17"):
        complete(alphabet, letters, ["ab"], stop_tokens=[17], **options)


def test_echo_tells_of_the_prompt_and_alternatives_of_each_place(sample, mean):
    """Catches: a prompt's own tokens one place off, alternatives behind the end, samples that mix up prompts."""
    options = {"max_new_tokens": 4, "num_return_sequences": 2}
    for text, pair in zip(
        ("abc", "fg"), sample(["abc", "fg"], echo=True, alternatives=2, **options)
    ):
        for found in pair:
            ids, prompt = (1, *(4 + ord(letter) - 96 for letter in text)), found.prompt
            assert prompt.tokens == ids
            given = mean.log_probs(ids)
            assert prompt.log_probs[0] is None
            expected = given[np.arange(len(text)), ids[1:]]
            np.testing.assert_allclose(prompt.log_probs[1:], expected, atol=2e-5)
            assert len(prompt.alternatives) == len(text)
            assert len(found.alternatives) == len(found.tokens)
            following = mean.log_probs([*ids, *found.tokens])[len(ids) - 1]
            token, log_prob = found.alternatives[0][0]
            assert token == following.argmax()
            assert log_prob == pytest.approx(following.max(), abs=2e-5)
    ((plain,),) = sample(["abc"], max_new_tokens=4)
    assert (plain.alternatives, plain.prompt) == ((), None)


def test_prompts_may_be_ids_and_have_settings_of_their_own(sample):
    """Catches: <bos> before ids that are given, one setting for all."""
    settings = [Sampling(temperature=0), Sampling(top_k=3)]
    (first,), (second,) = sample([[1, 5, 6], "b"], sampling=settings, max_new_tokens=8)
    ((text,),) = sample(["ab"], sampling=settings[:1], max_new_tokens=8)
    assert first.tokens == text.tokens
    with pytest.raises(RequestError, match="1 settings for 2 prompts"):
        sample(["a", "b"], sampling=settings[:1])
    with pytest.raises(RequestError, match="prompts has token 99"):
        sample([[99]])
    assert second.text


def test_without_a_number_as_many_tokens_as_fit(sample, decoder, alphabet, letters):
    """Catches: a default that a model with as short a context can never take; one that ends too early."""
    options = {"model": decoder, "max_new_tokens": None, "sampling": GREEDY}
    for longest, room in ((1, 62), (62, 1)):  # <bos> and the letters, of 64 positions
        for (found,) in sample(["a", "a" * longest], **options):
            assert len(found.tokens) == room or found.finish_reason == "eos"
    assert tokens_to_add([[1], [1] * 2], None, None, 64) == [62, 62]
    assert tokens_to_add([[1] * 3], None, None, 1000) == [64]
    with pytest.raises(RequestError, match="prompt 0 has 64 tokens; that leaves no room in the"):
        sample(["a" * 63], **options)
    ((found,),) = complete(alphabet, letters, ["a" * 99], sampling=GREEDY)  # without a limit
    assert len(found.tokens) == 64


def test_an_empty_prompt_needs_bos(alphabet, letters, unmarked_letters):
    """Catches: an empty context that decodes from a padding token."""
    assert complete(alphabet, letters, [""], max_new_tokens=3, add_bos=False, sampling=GREEDY)
    with pytest.raises(RequestError, match="prompt is empty"):
        complete(alphabet, unmarked_letters, [""])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"num_return_sequences": 0}, "num_return_sequences=0"),
        ({"num_return_sequences": 2, "sampling": GREEDY}, "temperature=0"),
        ({"stop": "abc"}, "stop='abc'"),
        ({"stop": [""]}, "stop="),
        ({"alternatives": 18}, r"alternatives=18 must be in \[0, 17\]"),
        ({"max_length": 0}, "max_length=0"),
        ({"sampling": Sampling(logit_bias={99: 1.0})}, "logit_bias names token 99"),
    ],
)
def test_options_out_of_range_are_refused_by_name(alphabet, letters, options, name):
    """Catches: an option that is silently ignored."""
    with pytest.raises(RequestError, match=name):
        complete(alphabet, letters, ["a"], **options)
    with pytest.raises(RequestError, match="list of texts"):
        complete(alphabet, letters, "abc")


class Words:
    """Tokens carry the space before them, which decoding drops at the start of a text."""

    def __init__(self, letters):
        self.specials, self.vocab_size = letters.specials, 17

    def encode(self, text):
        return np.array([4 + "ab".index(word) for word in text.split()], np.int32)

    def decode(self, ids):
        return " ".join("ab"[i - 4] for i in ids)


def test_the_space_before_the_first_word_stays(letters):
    """Catches: completions decoded on their own."""
    tokens = np.array([4, 5] * 20)
    model = NgramConfig(order=2).fit(tokens, np.array([0, 40]), 17, 1, 2)
    options = {"max_new_tokens": 3, "sampling": GREEDY}
    ((found,),) = complete(Stepwise(NgramDecoder(model)), Words(letters), ["a b a"], **options)
    assert found.text == " b a b"
