"""Laws of labels: what the text up to a token settles, exactly at the tokens' ends."""

import itertools
import sys
import tokenize

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.data.exact_tokenizers import ByteConfig
from ablax.data.tokenizers import build_tokenizer
from ablax.data.trained_tokenizers import BpeConfig
from ablax.data.word_tokenizer import WordConfig
from ablax.evaluation.labels import UNASKED, bracket_labels, python_labels, token_labels
from ablax.evaluation.pieces import tokenize as tokens_of

LETTERS = {0: "c", 1: "b", 2: "d", 3: "s", 4: "#"}


def shown(text):
    labels = python_labels(text)
    assert labels is not None, text
    return "".join(LETTERS[int(label)] for label in labels)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f(a[1], {2})\n", "cbbddbbbddbcc"),
        ("x = rb'a\\'(' # '(\n", "ccccccssssssc####c"),
        ("'''a\n\"b'''[0]\n", "ssssssssssbbcc"),
        ("f'{a[0]}' + \"é🙂\"\n", "csssssssscccssssc"),
        ("''\n", "ssc"),
    ],
)
def test_where_each_character_lies(text, expected):
    """Catches brackets counted in strings and comments, a bracket's own depth, columns for characters, f-strings of
    Python 3.12 read inside."""
    assert shown(text) == expected


def test_newer_interpreters_read_f_strings_alike(monkeypatch):
    """Catches: the tokens into which Python 3.12 and later cut an f-string, and one within it, read as code."""
    text, op = "f'{a[f'(']}' (\n", tokenize.OP
    starts, middle, ends = 900, 901, 902
    made = [(starts, 0, 2), (op, 2, 3), (tokenize.NAME, 3, 4), (op, 4, 5), (starts, 5, 7)]
    made += [(middle, 7, 8), (ends, 8, 9), (op, 9, 10), (op, 10, 11), (ends, 11, 12), (op, 13, 14)]
    tokens = [
        tokenize.TokenInfo(kind, text[begin:end], (1, begin), (1, end), text)
        for kind, begin, end in made
    ]
    names = {starts: "FSTRING_START", middle: "FSTRING_MIDDLE", ends: "FSTRING_END"}
    monkeypatch.setattr(tokenize, "tok_name", dict(tokenize.tok_name) | names)
    monkeypatch.setattr(tokenize, "generate_tokens", lambda readline: iter(tokens))
    assert shown(text) == "cssssssssssscbb"


def test_what_follows_changes_no_label():
    """Catches a prefix that counts as string: whether `rb` is one or a name, only what follows tells."""
    texts = [
        "x = ''\n", "x = '''a'''\n", "x = '''a'b'''\n", "x = 'a'\n", "x = rb'a'\n", "x = rb\n", "x = r'a'\n",
        "x = (''\n)\n", "x = f'a{x}'\n", "x = f\n", "x = '' # '\n", "x = ''''''\n", "x = 'a' 'b'\n", "x = 'a\\'b'\n",
    ]  # fmt: skip
    for one, other in itertools.combinations(texts, 2):
        same = next(i for i, (a, b) in enumerate(zip(one, other)) if a != b)
        assert shown(one)[:same] == shown(other)[:same], (one, other)


@pytest.mark.parametrize(
    "text", ["it's no source", "f(]\n", "'''never ends\n", "  if\n a\n", ")(\n"]
)
def test_what_is_no_source_has_no_labels(text):
    if sys.version_info >= (3, 12) or text != "f(]\n":  # only newer interpreters match brackets
        assert python_labels(text) is None


def test_brackets_of_any_text():
    """Catches a bracket that closes nothing and leaves a debt; depths without a bound."""
    labels = bracket_labels("a) (b [it's {((} ] x)))])y")
    assert "".join(map(str, labels)) == "00011122222233333333210000"


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_a_token_has_the_label_of_its_last_character(kind):
    """Catches places that are off by the bytes of é, and documents whose tokens are counted on from the one before."""
    texts = ["x = 'é🙂' # é\n", "no source (", "", "f(é,\n  ['é'])\n"] * 2
    config = ByteConfig() if kind == "byte" else BpeConfig(vocab_size=290)
    tokenizer = build_tokenizer(config, iter(texts * 9), ("bos", "eos"))
    documents = tokens_of(tokenizer, texts)
    labels = token_labels("python", tokenizer, texts, documents)
    for text, (begin, end) in zip(texts, itertools.pairwise(documents.offsets)):
        whole, expected = python_labels(text), []
        for stop in range(begin + 1, end + 1):
            read = tokenizer.decode(documents.tokens[begin:stop])
            expected.append(UNASKED if whole is None else whole[len(read) - 1])
        assert labels[begin:end].tolist() == expected
    lengths = tokenizer.byte_lengths()
    assert lengths[list(tokenizer.specials.ids())].tolist() == [0, 0]
    if kind == "bpe":
        assert (lengths > 1).any()


def test_what_cannot_be_labelled_is_refused():
    texts = ["words only, isn't it"]
    words = build_tokenizer(WordConfig(), iter(texts), ())
    with pytest.raises(RequestError, match="lossless"):
        token_labels("python", words, texts, tokens_of(words, texts))
    characters = build_tokenizer(ByteConfig(), iter(texts), ())
    with pytest.raises(RequestError, match=r"evaluation\.probe_label=python: none of 1"):
        token_labels("python", characters, texts, tokens_of(characters, texts))
    labels = token_labels("brackets", characters, texts, tokens_of(characters, texts))
    np.testing.assert_array_equal(labels, 0)
