"""Streaming: the pieces together are the whole text, and nothing is said that is taken back."""

import threading
import types
from typing import Any

import pytest

from ablax.config import RequestError
from ablax.generation.loop import CHUNK
from ablax.pipelines.pipeline import pipeline
from ablax.pipelines.streaming import settled, stripped

LONG: dict[str, Any] = {"max_new_tokens": 2 * CHUNK + 8, "do_sample": True}


@pytest.fixture(scope="module")
def generator(causal):
    return pipeline("text-generation", causal, return_full_text=False, **LONG)


def whole(generator, prompt, **options) -> str:
    return generator(prompt, return_full_text=False, **options)[0]["generated_text"]


def test_the_pieces_are_the_whole(generator):
    """Catches: a last piece that is not said; a program for streaming that draws otherwise."""
    for seed in range(3):
        pieces = list(generator.stream("ab", seed=seed))
        assert len(pieces) > 1
        assert "".join(pieces) == whole(generator, "ab", seed=seed)


def test_no_character_is_split(bytewise):
    """Catches: a piece that ends in U+FFFD, which the next bytes would make a character."""
    generator = pipeline("text-generation", bytewise, **LONG)
    for seed in range(4):
        pieces = list(generator.stream("é", seed=seed))
        assert "".join(pieces) == whole(generator, "é", seed=seed)
        assert "\ufffd" in "".join(pieces)
        assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])


def test_no_part_of_a_stop_string_leaks(generator):
    """Catches: its first characters, said before it was complete; what follows it, which was decoded already."""
    text = whole(generator, "ab", seed=1)
    for place, size in ((14, 4), (CHUNK - 1, 3), (20, 2)):
        stop = text[place : place + size]
        pieces = list(generator.stream("ab", seed=1, stop_strings=stop))
        assert "".join(pieces) == whole(generator, "ab", seed=1, stop_strings=stop)
        assert "".join(pieces) == text[: text.index(stop)]


def test_a_token_that_ends_is_not_said(generator):
    """Catches: the text of a stop token, which is a token like others."""
    text = whole(generator, "ab", seed=1)
    (token,) = generator.tokenizer.encode(text[20])
    pieces = list(generator.stream("ab", seed=1, eos_token_id=int(token)))
    assert "".join(pieces) == text[: text.index(text[20])]


@pytest.mark.parametrize(
    ("text", "stops", "sure"),
    [
        ("abc", (), 3),
        ("abc", ("cd",), 2),
        ("abc", ("xbc", "bcd"), 1),
        ("abcd", ("bc",), 1),
        ("ab", ("b", "abc"), 0),
        ("ab\ufffd", (), 2),
        ("ab\ufffd\ufffd", ("bx",), 1),
        ("a\ufffdb", (), 3),
        ("", ("a",), 0),
    ],
)
def test_what_is_settled(text, stops, sure):
    assert settled(text, stops) == sure


def test_streamers(generator):
    """Ours, and transformers' TextStreamer, whose `put` takes tokens. Catches: an end that is not told."""
    said = []
    own = types.SimpleNamespace(put=said.append, end=lambda: said.append(None))
    found = generator("ab", streamer=own, seed=1)
    assert "".join(said[:-1]) == found[0]["generated_text"] == whole(generator, "ab", seed=1)
    assert said[-1] is None
    told = []
    theirs = types.SimpleNamespace(
        put=None, on_finalized_text=lambda text, stream_end=False: told.append((text, stream_end))
    )
    assert generator("ab", streamer=theirs, seed=1) == found
    assert told == [*((piece, False) for piece in said[:-1]), ("", True)]
    with pytest.raises(RequestError, match="one prompt"):
        generator(["ab", "b"], streamer=own)


def test_a_stream_that_nobody_reads_ends(generator):
    """Catches: a thread that goes on with a text after its reader has left."""
    stream = generator.stream("ab", seed=1)
    next(stream)
    stream.close()
    assert not any(thread.name == "ablax-stream" for thread in threading.enumerate())


def test_an_error_reaches_the_reader(generator):
    """Catches: a reader that waits for ever. What can be told before is told before."""
    with pytest.raises(RequestError, match="exceeds"):
        list(generator.stream("ab", max_new_tokens=99))
    with pytest.raises(RequestError, match="one text is streamed"):
        generator.stream("ab", num_return_sequences=2)


@pytest.mark.parametrize(
    "pieces", [["  ", " a", " ", "b ", " "], ["a"], [" \n"], [], ["a b", "\n", "c\n\n"]]
)
def test_white_space_around_the_whole_is_left_out(pieces):
    assert "".join(stripped(pieces)) == "".join(pieces).strip()
