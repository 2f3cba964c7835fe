"""Labels of tokens that the text up to them settles, so that a model that reads from left to right may know them."""

import io
import itertools
import tokenize
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int8

from ablax.config import RequestError
from ablax.data.tokenizer import Tokenizer
from ablax.evaluation.pieces import Documents

UNASKED = -1
OPENING, CLOSING = "([{", ")]}"
_BEGINS = ("FSTRING_START", "TSTRING_START")  # from Python 3.12 and 3.14 on
_ENDS = ("FSTRING_END", "TSTRING_END")


def bracket_labels(text: str) -> Int8[np.ndarray, " characters"]:
    """How many brackets are open behind each character of any text: 0, 1, 2, or 3 for more.

    All of ( [ { are counted alike; one that closes nothing is left out.
    """
    labels, depth = np.zeros(len(text), np.int8), 0
    for at, character in enumerate(text):
        if character in OPENING:
            depth += 1
        elif character in CLOSING:
            depth = max(depth - 1, 0)
        labels[at] = min(depth, 3)
    return labels


def python_labels(text: str) -> Int8[np.ndarray, " characters"] | None:
    """Where in Python source each character lies, by the standard library's `tokenize`; None if it is no such source.

    0 code outside brackets, 1 inside one, 2 inside more, 3 string, 4 comment. A bracket counts as what follows it. A
    string's quotes belong to it, its prefix does not: whether `rb` is one or a name, only the next character tells. An
    f-string is all string, as it was before Python 3.12.
    """
    lines = text.split("\n")
    begins = [0, *itertools.accumulate(len(line) + 1 for line in lines)]
    opened = np.zeros(len(text) + 1, np.int64)
    strings: list[tuple[int, int]] = []
    comments: list[tuple[int, int]] = []
    nested, start = 0, 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            name = tokenize.tok_name[token.type]
            begin, end = (begins[min(row, len(begins)) - 1] + column for row, column in token[2:4])
            if name == "ERRORTOKEN" and token.string.strip():
                return None
            if name in _BEGINS:
                start, nested = start if nested else begin, nested + 1
            elif name in _ENDS:
                nested -= 1
                if not nested:
                    strings.append((start, end))
            elif name == "STRING":
                strings.append((begin, end))
            elif name == "COMMENT":
                comments.append((begin, end))
            elif name == "OP" and token.string in (*OPENING, *CLOSING):
                opened[begin] = 1 if token.string in OPENING else -1
    except (tokenize.TokenError, SyntaxError):
        return None
    depth = np.cumsum(opened)[:-1]
    if len(depth) and depth.min() < 0:
        return None
    labels = np.minimum(depth, 2).astype(np.int8)
    for begin, end in strings:
        prefix = next(n for n, character in enumerate(text[begin:end]) if character in "'\"")
        labels[begin + prefix : end] = 3
    for begin, end in comments:
        labels[begin:end] = 4
    return labels


LABELS: dict[str, tuple[Callable[[str], np.ndarray | None], int]] = {
    "python": (python_labels, 5),
    "brackets": (bracket_labels, 4),
}
"""Kind of label -> a function of a text to the label of each character, and the number of classes C."""


def token_labels(
    kind: str, tokenizer: Tokenizer, texts: Sequence[str], documents: Documents
) -> Int8[np.ndarray, " total"]:
    """The label of each token, which is its last character's; `UNASKED` in documents that have none.

    Args:
      kind: of `LABELS`.
      texts: of the documents.

    Raises:
      RequestError: if the tokens do not stand for every byte, or no document has labels.
    """
    if not (tokenizer.lossless and documents.lossless):
        raise RequestError(
            "evaluation.probe_documents: where a token ends in the text, only a lossless tokenizer tells; use "
            "data.tokenizer=bpe, byte or character, or set it to 0"
        )
    function, _ = LABELS[kind]
    sizes = tokenizer.byte_lengths()
    labels = np.full(len(documents.tokens), UNASKED, np.int8)
    for text, (begin, end) in zip(texts, itertools.pairwise(documents.offsets)):
        found = function(text)
        if found is None:
            continue
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        by_byte = np.repeat(found, 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF))
        ends = np.cumsum(sizes[documents.tokens[begin:end]])
        assert begin == end or ends[-1] == len(by_byte), "a lossless tokenizer keeps every byte"
        labels[begin:end] = by_byte[ends - 1]
    if (labels == UNASKED).all():
        raise RequestError(
            f"evaluation.probe_label={kind}: none of {len(texts)} documents has such labels (python asks for Python "
            "source); use brackets, more documents, or set evaluation.probe_documents=0"
        )
    return labels
