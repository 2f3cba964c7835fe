"""Text generation: what users of transformers know, and nothing cut in silence."""

from typing import Any

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.generation.completion import Completion
from ablax.pipelines.pipeline import pipeline
from ablax.pipelines.text_generation import TextOptions

SHORT: dict[str, Any] = {"max_new_tokens": 4}


def texts(results) -> list[str]:
    return [one["generated_text"] for one in results]


@pytest.fixture(scope="module")
def generator(causal):
    return pipeline("text-generation", model=causal)


def test_the_snippet_that_everybody_knows(generator):
    """Catches: three times the same text, because nothing was drawn."""
    found = generator("hello", max_length=16, num_return_sequences=3)
    assert [list(one) for one in found] == [["generated_text"]] * 3
    assert len(set(texts(found))) == 3
    for text in texts(found):
        assert text.startswith("hello")
        assert len(generator.tokenizer.encode(text)) + 1 <= 16


def test_a_list_gives_a_list_of_lists(generator):
    """Catches: results of several prompts run together, or out of order because the prompts were sorted."""
    prompts = ["a long prompt", "ab", "some"]
    found = generator(prompts, **SHORT)
    assert [len(one) for one in found] == [1, 1, 1]
    assert [one[0]["generated_text"][: len(p)] for one, p in zip(found, prompts)] == prompts
    assert generator(["ab"], **SHORT) == [generator("ab", **SHORT)]


def test_a_batch_is_each_alone(generator):
    """Catches: a row that sees its neighbour's padding; a seed by place in the batch."""
    prompts = ["a long prompt", "ab", "some"]
    assert generator(prompts, **SHORT) == [generator(prompt, **SHORT) for prompt in prompts]
    drawn = {**SHORT, "do_sample": True, "num_return_sequences": 2, "seed": 5}
    assert generator(prompts, **drawn) == generator(prompts, **drawn, batch_size=1)


def test_the_likeliest_is_taken_unless_something_is_drawn():
    """Catches: a temperature that does nothing, because nothing is drawn."""
    assert not TextOptions().draws
    assert TextOptions(num_return_sequences=2).draws
    assert not TextOptions(num_return_sequences=2, num_beams=2).draws
    assert TextOptions(temperature=0.7).draws
    assert TextOptions(top_k=3).sampling().temperature == 1
    assert TextOptions().sampling().temperature == 0
    assert not TextOptions(temperature=0.0).draws


def test_parts_of_a_result(generator):
    whole = generator("ab", return_log_probs=True, alternatives=2, echo=True, **SHORT)[0]
    assert len(whole["token_ids"]) == len(whole["log_probs"]) == len(whole["alternatives"]) == 4
    assert whole["finish_reason"] == "length"
    assert len(whole["prompt"].tokens) == 3
    new = generator("ab", return_full_text=False, **SHORT)[0]["generated_text"]
    assert whole["generated_text"] == "ab" + new
    ids = generator("ab", return_tensors=True, **SHORT)[0]["generated_token_ids"]
    assert ids == [
        generator.tokenizer.specials.bos,
        *generator.tokenizer.encode("ab"),
        *whole["token_ids"],
    ]
    (((one,),)) = generator.complete(["ab"], **SHORT)
    assert isinstance(one, Completion)
    assert one.text == new


def test_defaults_hold_until_a_call_says_otherwise(causal):
    generator = pipeline("text-generation", causal, max_new_tokens=3, return_full_text=False)
    assert len(generator("ab")[0]["generated_text"]) == 3
    assert len(generator("ab", max_new_tokens=2)[0]["generated_text"]) == 2
    assert len(generator("ab")[0]["generated_text"]) == 3


def test_a_long_prompt_is_refused_or_cut_as_asked(generator):
    """Catches: a prompt that is cut though nobody asked; its beginning kept in place of its end; <bos> lost."""
    long = "x" * 60 + "the end"
    with pytest.raises(RequestError, match="48"):
        generator(long, **SHORT)
    found = generator(long, truncation=True, **SHORT)[0]["generated_text"]
    assert found.startswith(long)
    ids = generator.encode(long, TextOptions(truncation=True, **SHORT))
    assert len(ids) == 44
    assert ids[0] == generator.tokenizer.specials.bos
    assert generator.tokenizer.decode(ids).endswith("xthe end")
    assert found == long + generator.complete([ids], **SHORT)[0][0].text
    ids = generator.encode(long, TextOptions(truncation=True, max_length=10, max_new_tokens=6))
    assert generator.tokenizer.decode(ids) == "end"
    short = TextOptions(truncation=True, **SHORT)
    assert generator.encode("ab", short) == generator.encode("ab", TextOptions())


def test_bos_stands_before_a_prompt_as_asked(generator):
    """Catches: <bos> though it was refused, or lost where there is nothing else."""
    bos = generator.tokenizer.specials.bos
    ids = generator.tokenizer.encode("ab").tolist()
    assert generator.encode("ab", TextOptions()) == [bos, *ids]
    without = TextOptions(add_special_tokens=False)
    assert generator.encode("ab", without) == ids
    assert generator.encode("", without) == [bos]
    found = generator.complete(["ab"], add_special_tokens=False, **SHORT)
    assert found == generator.complete([ids], **SHORT)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temprature": 0.5}, "text-generation takes no temprature; did you mean 'temperature'?"),
        ({"do_sample": False, "num_return_sequences": 2}, "do_sample=True, or num_beams=2"),
        ({"do_sample": False, "top_p": 0.5}, "top_p=0.5 is for drawing"),
        ({"do_sample": True, "temperature": 0.0}, "draws nothing"),
        ({"do_sample": True, "num_beams": 2}, "leave one out"),
        ({"num_beams": 2, "top_k": 3}, "leave it out"),
        ({"truncation": "stride"}, "truncation=True"),
        ({"truncation": "yes"}, "must be True, False or 'stride'"),
        ({"truncation": True, "max_length": 4, "max_new_tokens": 4}, "leaves no room"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"num_beams": 0}, "num_beams=0"),
    ],
)
def test_what_is_impossible_is_refused(generator, options, told):
    with pytest.raises(RequestError, match=r"\A[^\n]*\Z") as error:
        generator("ab", **options)
    assert told in str(error.value)


@pytest.mark.parametrize("given", [3, [3], [{"role": "user", "content": "a"}], {"text": "a"}, None])
def test_what_is_no_text_is_refused(generator, given):
    """Catches: a dict's keys, or a text's letters, taken for prompts."""
    with pytest.raises(RequestError, match="text-generation takes texts"):
        generator(given)
    with pytest.raises(RequestError, match="prompts='ab' must be a list"):
        generator.complete("ab")


def test_ends_are_given_in_any_form():
    """Catches: an id of the tokenizer's own type, or None, which is what other libraries call none."""
    token: Any = np.int32(5)
    for tokens, texts in ((token, "a"), ([token], ["a"]), (5, ("a",))):
        ends = TextOptions(eos_token_id=tokens, stop_strings=texts).ends(2)
        assert (ends.ids, ends.texts) == ((2, 5), ("a",))
    assert TextOptions(eos_token_id=None, stop_strings=None).ends(2).ids == (2,)
    assert TextOptions(eos_token_id=0).ends(None).ids == (0,)


def test_beams(generator):
    found = generator("ab", num_beams=3, num_return_sequences=2, **SHORT)
    assert len(set(texts(found))) == 2
