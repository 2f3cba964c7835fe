"""Chat: an answer to a conversation, and a history that is never cut in silence."""

import pytest

from ablax.config import RequestError
from ablax.pipelines.chat import ANSWER, Chat
from ablax.pipelines.pipeline import pipeline

HELLO = [{"role": "user", "content": "hi"}]
TALK = [
    {"role": "system", "content": "be"},
    {"role": "user", "content": "o"},
    {"role": "assistant", "content": "two"},
    *HELLO,
]


@pytest.fixture(scope="module")
def chat(causal) -> Chat:
    return pipeline("chat", causal, max_new_tokens=20)


def test_an_answer(chat):
    """Catches: an answer with the prompt; white space around it."""
    found = chat(HELLO)
    assert list(found) == ["role", "content"]
    assert found["role"] == "assistant"
    prompt = "User: hi\nAssistant:"
    plain = pipeline("text-generation", chat.model, return_full_text=False)
    whole = plain(prompt, max_new_tokens=20, stop_strings=["\nUser:", "\nAssistant:"])
    assert found["content"] == whole[0]["generated_text"].strip()
    assert chat([HELLO, HELLO]) == [found, found]
    assert chat("hi") == found


def test_the_pieces_are_the_whole(chat):
    """Catches: a space at the end that is said and then taken back."""
    for seed in range(2):
        options = {"seed": seed, "do_sample": True}
        assert "".join(chat.stream(HELLO, **options)) == chat(HELLO, **options)["content"]


def test_a_history_is_refused_or_cut_as_asked(chat):
    """Catches: messages that are dropped though nobody asked; a system's message that is dropped; a conversation that
    begins with an answer.
    """
    with pytest.raises(RequestError, match="truncation=True drops the oldest"):
        chat(TALK)
    ids, dropped = chat.fit(TALK, truncation=True)
    assert dropped == 2
    assert chat.tokenizer.decode(ids) == "be\n\nUser: hi\nAssistant:"
    assert chat(TALK, truncation=True) == chat([TALK[0], *HELLO])
    assert chat.fit(TALK, max_new_tokens=1)[1] == 0
    with pytest.raises(RequestError, match="shorten the last one"):
        chat("x" * 60, truncation=True)


def test_an_answer_has_room(causal):
    """Catches: a history that fills the model, so that no answer fits."""
    chat = pipeline("chat", causal)
    assert chat._added(chat.options) == min(ANSWER, 24)
    with pytest.raises(RequestError, match="room for 24: shorten the last one"):
        chat("x" * 10)
    assert isinstance(chat("x", stop_strings=None, max_new_tokens=1)["content"], str)


def test_a_template_is_used(causal):
    """Catches: the model's own template, with the plain dialogue's ends."""
    chat = pipeline("chat", causal, chat_template="{{ messages[-1].content }}.", max_new_tokens=3)
    assert causal.tokenizer.decode(chat.fit(HELLO)[0]) == "hi."


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_beams": 2}, "leave num_beams=2 out"),
        ({"num_return_sequences": 2}, "leave num_return_sequences=2 out"),
        ({"return_log_probs": True}, "leave return_log_probs=True out"),
        ({"alternatives": 2}, "leave alternatives=2 out"),
        ({"add_special_tokens": False}, "leave add_special_tokens=False out"),
        ({"temprature": 1.0}, "did you mean 'temperature'?"),
    ],
)
def test_what_is_impossible_is_refused(chat, options, told):
    with pytest.raises(RequestError) as error:
        chat(HELLO, **options)
    assert told in str(error.value)
