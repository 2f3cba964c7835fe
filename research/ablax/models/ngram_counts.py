"""Documents to n-gram tables: marks around documents, and one sort for each order."""

import numpy as np
from jaxtyping import Integer

from ablax.config import RequestError
from ablax.models.ngram_table import Table
from ablax.shapes import typed


@typed
def mark_documents(
    tokens: Integer[np.ndarray, "tokens"],
    offsets: Integer[np.ndarray, "boundaries"],
    vocab_size: int,
    bos: int | None,
    eos: int | None,
) -> tuple[Integer[np.ndarray, "T"], Integer[np.ndarray, "documents"]]:
    """Puts <bos> before and <eos> after each document `tokens[offsets[i] : offsets[i + 1]]`.

    Returns:
      The stream, and where in it each document begins. A document without tokens and marks is left
      out.

    Raises:
      RequestError: if the offsets do not cover the tokens, a token lies outside the vocabulary, or
        one is <bos>.
    """
    lengths = np.diff(offsets.astype(np.int64))
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(tokens) or (lengths < 0).any():
        raise RequestError(
            f"offsets must rise from 0 to the number of tokens, {len(tokens)}, with one entry more "
            "than there are documents"
        )
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise RequestError(
            f"tokens from {tokens.min()} to {tokens.max()} do not fit vocab_size={vocab_size}; use "
            "the tokenizer that belongs to the model"
        )
    if bos is not None and (tokens == bos).any():
        raise RequestError(
            f"the documents contain <bos> (token {bos}) themselves; give them without marks"
        )
    marks = (bos is not None) + (eos is not None)
    starts = offsets[:-1].astype(np.int64) + np.arange(len(lengths)) * marks
    stream = np.empty(len(tokens) + len(lengths) * marks, np.int64)
    is_token = np.ones(len(stream), bool)
    if bos is not None:
        stream[starts] = bos
        is_token[starts] = False
    if eos is not None:
        ends = starts + lengths + marks - 1
        stream[ends] = eos
        is_token[ends] = False
    stream[is_token] = tokens
    return stream, starts if marks else starts[lengths > 0]


@typed
def count(
    stream: Integer[np.ndarray, "T"],
    starts: Integer[np.ndarray, "documents"],
    order: int,
    has_bos: bool,
    discount_fallback: tuple[int | float, ...],
) -> tuple[Table, ...]:
    """Counts the n-grams of orders 1 to `order`, with the boundary rules of KenLM's `lmplz`.

    Each order costs one sort: the n-gram that ends at t has the key (id of the (n-1)-gram that ends
    at t-1, word), and its id is the rank of that key among the distinct ones.

    Args:
      stream: all documents with their marks, one after the other.
      starts: where each document begins; none is empty.
      has_bos: whether each begins with <bos>, which is never predicted, and whose n-grams are
        counted by occurrences, having no left neighbour. Without <bos>, a document's start is one
        more left neighbour, the same for all.

    Returns:
      The tables, lowest order first.
    """
    words, radix = stream, int(stream.max()) + 1
    contexts = np.zeros(len(stream), np.int64)
    ranked = []
    for _ in range(order):
        ids, keys, places = _rank(contexts, words, radix)
        ranked.append((ids, keys, places, radix))
        words, radix = ranked[0][0], len(ranked[0][1])
        contexts = previous(ids, starts)

    lengths = np.diff(starts, append=len(stream))
    tables: list[Table] = []
    for n, (ids, keys, _, radix) in enumerate(ranked, 1):
        opening = ids[starts[lengths >= n] + n - 1]  # the n-grams that begin documents
        if n == order:
            counts = np.bincount(ids[ids >= 0], minlength=len(keys))
            if n == 1 and has_bos:
                counts -= np.bincount(opening, minlength=len(keys))
        else:
            counts = np.bincount(ids[ranked[n][2]], minlength=len(keys))
            if not has_bos:
                counts[np.unique(opening)] += 1
            elif n > 1:
                counts += np.bincount(opening, minlength=len(keys))
        num_contexts = len(tables[-1].keys) if tables else 1
        tables.append(Table.build(keys, radix, counts, num_contexts, discount_fallback))
    return tuple(tables)


def previous(ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The id at the place before, in the same document; -1 where a document starts."""
    before = np.empty_like(ids)
    before[1:] = ids[:-1]
    before[starts] = -1
    return before


def _rank(contexts: np.ndarray, words: np.ndarray, radix: int) -> tuple[np.ndarray, ...]:
    """The id of the n-gram ending at each place (-1: none), the distinct keys, a place of each."""
    present = np.flatnonzero(contexts >= 0)
    keys = contexts[present] * radix + words[present]
    order = np.argsort(keys)
    keys = keys[order]
    is_new = np.ones(len(keys), bool)
    is_new[1:] = keys[1:] != keys[:-1]
    ids = np.full(len(words), -1)
    ids[present[order]] = np.cumsum(is_new) - 1
    return ids, keys[is_new], present[order[is_new]]
