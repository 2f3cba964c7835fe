"""Interpolated modified Kneser-Ney n-gram models: fitted by counting, in NumPy.

Chen and Goodman 1999 (Computer Speech and Language 13), section 3; boundaries and discounts as in KenLM's `lmplz`
(Heafield et al. 2013, section 3): p_n(w | h) = (count(h w) - D(count(h w))) / total(h) + backoff(h) p_{n-1}(w | h'),
where h' is h less its first token and p_0 is uniform over the tokens but <bos>, never predicted.
"""

import dataclasses
import functools
import os
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float64, Integer

from ablax.config import RequestError, knob
from ablax.models.ngram_counts import count, mark_documents, previous
from ablax.models.ngram_table import Table
from ablax.shapes import typed

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class NgramConfig:
    """An n-gram model with interpolated modified Kneser-Ney smoothing, without pruning."""

    order: int = knob(5, "tokens in the longest n-gram; the context is one token shorter")
    discount_fallback: tuple[float, float, float] = knob(
        (0.5, 1.0, 1.5),
        "discounts of counts 1, 2 and 3+ at orders whose counts of counts give none (tiny corpora)",
    )
    read: Literal["all", "steps"] = knob(
        "all",
        "training tokens that are counted: all, or as many as a neural model's `training.steps` read, in documents "
        "that the run's seed draws",
    )

    CAUSAL: ClassVar[bool] = True
    PRESETS: ClassVar[dict[str, dict[str, int]]] = {
        "unigram": {"order": 1},
        "bigram": {"order": 2},
        "trigram": {"order": 3},
        "5gram": {"order": 5},
    }

    def __post_init__(self):
        if self.order < 1:
            raise RequestError(f"order={self.order} must be at least 1; a trigram has order 3")
        given = self.discount_fallback
        if len(given) != 3 or not all(0 < discount <= k for k, discount in enumerate(given, 1)):
            raise RequestError(
                f"discount_fallback={given} must be three numbers in (0, 1], (0, 2] and (0, 3]: "
                "each is taken from a count of that size"
            )

    @typed
    def fit(
        self,
        tokens: Integer[np.ndarray, "tokens"],
        offsets: Integer[np.ndarray, "boundaries"],
        vocab_size: int,
        bos: int | None,
        eos: int | None,
    ) -> "Ngram":
        """Counts documents `tokens[offsets[i] : offsets[i + 1]]`, each as <bos> tokens <eos>.

        Without <bos> a document's first token has the empty context; without <eos> its end is not
        predicted. The two may be the same token, which is then predicted as an end.

        Args:
          tokens: all documents, one after the other, without marks.
          offsets: where each document begins, and the total.
          vocab_size: V; every token is below it.
          bos: id of the mark before a document, or None.
          eos: id of the mark after it, or None.

        Raises:
          RequestError: if a token or mark lies outside the vocabulary, a document contains <bos>,
            the offsets do not cover the tokens, or there is nothing to count.
        """
        for name, mark in (("bos", bos), ("eos", eos)):
            if mark is not None and not 0 <= mark < vocab_size:
                raise RequestError(f"{name}={mark} must lie in the vocabulary, below {vocab_size}")
        if vocab_size - _unpredicted(bos, eos) < 1:
            raise RequestError(f"vocab_size={vocab_size} leaves nothing to predict but <bos>")
        stream, starts = mark_documents(tokens, offsets, vocab_size, bos, eos)
        if len(stream) == (0 if bos is None else len(starts)):
            raise RequestError("there are no tokens to count; give documents that are not empty")
        tables = count(stream, starts, self.order, bos is not None, self.discount_fallback)
        return Ngram(self, vocab_size, bos, eos, tables)


@dataclasses.dataclass(frozen=True, eq=False)
class Ngram:
    """A fitted n-gram model: a distribution over V tokens after every context.

    Attributes:
      config: how it was fitted.
      vocab_size: V.
      bos, eos: ids of the marks around documents, or None.
      tables: the n-grams of orders 1 to `config.order`.
    """

    config: NgramConfig
    vocab_size: int
    bos: int | None
    eos: int | None
    tables: tuple[Table, ...]

    @property
    def parameter_count(self) -> int:
        """Stored numbers: a share for each n-gram and a backoff weight for each context."""
        return sum(len(table.shares) + len(table.backoffs) for table in self.tables)

    @property
    def discounts(self) -> Float64[np.ndarray, "order 3"]:
        """D1, D2 and D3+ of each order, lowest first."""
        return np.stack([table.discounts for table in self.tables])

    @property
    def fallback_orders(self) -> tuple[int, ...]:
        """The orders that use `config.discount_fallback`."""
        return tuple(n for n, table in enumerate(self.tables, 1) if table.fallback)

    @property
    def uniform(self) -> float:
        """p_0: the probability of each token but <bos> before anything is counted."""
        return 1 / (self.vocab_size - _unpredicted(self.bos, self.eos))

    @typed
    def score(
        self, tokens: Integer[np.ndarray, "tokens"], offsets: Integer[np.ndarray, "boundaries"]
    ) -> Float64[np.ndarray, "scored"]:
        """Nats (-ln p) of each token of the documents, and of <eos> after each, if there is one.

        A token that was never counted has the part of p_0 that its context backs off to. The
        arguments are those of `NgramConfig.fit`.

        Returns:
          With <eos>, document i lies at `offsets[i] + i : offsets[i + 1] + i + 1`; without, each
          value lies at its token's place.

        Raises:
          RequestError: if a token lies outside the vocabulary or is <bos>, or the offsets do not
            cover the tokens.
        """
        stream, starts = mark_documents(tokens, offsets, self.vocab_size, self.bos, self.eos)
        probabilities = np.full(len(stream), self.uniform)
        for table, contexts, ids in self._walk(stream, starts, self.tables):
            known = np.flatnonzero(contexts >= 0)
            probabilities[known] *= table.backoffs[contexts[known]]
            hit = np.flatnonzero(ids >= 0)
            probabilities[hit] += table.shares[ids[hit]]
        if self.bos is not None:
            probabilities = np.delete(probabilities, starts)
        return -np.log(probabilities)

    @typed
    def log_probs(self, contexts: Integer[np.ndarray, "B C"]) -> Float64[np.ndarray, "B V"]:
        """ln p(next token) after each context; <bos> gets -inf.

        Args:
          contexts: the tokens before, the latest last. Only the last order - 1 count, and of these
            what follows the last negative entry: pad short contexts with -1 on the left. A document
            begins after the context <bos>, or after an empty one if there is no <bos>.

        Raises:
          RequestError: if a token lies outside the vocabulary.
        """
        if contexts.size and contexts.max() >= self.vocab_size:
            raise RequestError(
                f"context token {contexts.max()} is not below vocab_size={self.vocab_size}; encode "
                "with the model's tokenizer"
            )
        last = self._last_ids(contexts)
        scales = [np.ones(len(contexts))]  # [n - 1][row]: product of the backoffs above order n
        for table, ids in zip(self.tables[:0:-1], last[:0:-1]):
            backoffs = np.ones(len(contexts))
            backoffs[ids >= 0] = table.backoffs[ids[ids >= 0]]
            scales.insert(0, scales[0] * backoffs)
        with np.errstate(divide="ignore"):  # <bos>
            result = np.log(self._unigrams) + np.log(scales[0])[:, None]
        seen = None  # (rows, tokens) of the bigrams; every longer n-gram ends in one of these
        for n, (table, ids) in enumerate(zip(self.tables[1:], last[1:]), 2):
            rows, found = table.followers(ids)
            entries = rows, self.tables[0].keys[table.keys[found] % table.radix]
            if seen is None:
                seen = entries
                result[seen] = self._unigrams[entries[1]] * scales[0][rows]
            result[entries] += table.shares[found] * scales[n - 1][rows]
        if seen is not None:
            result[seen] = np.log(result[seen])
        return result

    def _last_ids(self, contexts: np.ndarray) -> list[np.ndarray]:
        """[n][row], n below the order: id of the n-gram that ends each context (-1: unseen)."""
        width = min(contexts.shape[1], self.config.order - 1)
        last = [np.zeros(len(contexts), np.int64)]
        if width:
            stream = contexts[:, -width:].ravel()
            starts = np.arange(len(contexts)) * width
            walk = self._walk(stream, starts, self.tables[:width])
            last += [ids[width - 1 :: width] for _, _, ids in walk]
        return last + [np.full(len(contexts), -1)] * (self.config.order - len(last))

    @functools.cached_property
    def _unigrams(self) -> Float64[np.ndarray, "V"]:
        """The distribution after an empty context."""
        table = self.tables[0]
        probabilities = np.full(self.vocab_size, self.uniform * table.backoffs[0])
        probabilities[table.keys] += table.shares
        if self.bos is not None and self.bos != self.eos:
            probabilities[self.bos] = 0.0
        return probabilities

    def _walk(
        self, stream: np.ndarray, starts: np.ndarray, tables: tuple[Table, ...]
    ) -> Iterator[tuple[Table, np.ndarray, np.ndarray]]:
        """Each table, with the ids of the context and of the n-gram at each place (-1: unseen)."""
        words = stream.astype(np.int64)
        contexts = np.zeros(len(stream), np.int64)
        for n, table in enumerate(tables, 1):
            ids = table.find(contexts, words)
            yield table, contexts, ids
            if n == 1:
                words = ids
            contexts = previous(ids, starts)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the counts to one compressed .npz file at this very path, whole or not at all."""
        marks = [-1 if mark is None else mark for mark in (self.bos, self.eos)]
        arrays: dict[str, Any] = {
            "header": np.array([FORMAT, self.config.order, self.vocab_size, *marks]),
            "discount_fallback": np.array(self.config.discount_fallback),
        }
        for n, table in enumerate(self.tables, 1):
            contexts, words = np.divmod(table.keys, table.radix)
            arrays[f"words_{n}"] = _narrow(words)
            arrays[f"fanouts_{n}"] = _narrow(np.bincount(contexts, minlength=len(table.backoffs)))
            arrays[f"counts_{n}"] = _narrow(table.counts)
        partial = f"{os.fspath(path)}.partial"
        with open(partial, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Ngram":
        """Reads what `save` wrote: the same model, bit for bit.

        Raises:
          RequestError: if the file is absent or not a saved n-gram model.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls._from_arrays(dict(arrays))
        except FileNotFoundError:
            raise RequestError(f"{path}: no such file; save an n-gram model there first") from None
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise RequestError(
                f"{path}: not an n-gram model of format {FORMAT} ({error}); fit and save it again"
            ) from error

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Ngram":
        found, order, vocab_size, bos, eos = arrays["header"].tolist()
        if found != FORMAT:
            raise ValueError(f"format {found}")
        config = NgramConfig(order, tuple(arrays["discount_fallback"].tolist()))
        tables: list[Table] = []
        radix, num_contexts = int(arrays["words_1"][-1]) + 1, 1
        for n in range(1, order + 1):
            words, counts = (arrays[f"{name}_{n}"].astype(np.int64) for name in ("words", "counts"))
            keys = np.repeat(np.arange(num_contexts), arrays[f"fanouts_{n}"]) * radix + words
            if (keys[1:] <= keys[:-1]).any():
                raise ValueError(f"the n-grams of order {n} are out of order")
            tables.append(Table.build(keys, radix, counts, num_contexts, config.discount_fallback))
            radix, num_contexts = len(tables[0].keys), len(keys)
        marks = (None if mark < 0 else mark for mark in (bos, eos))
        return cls(config, vocab_size, next(marks), next(marks), tuple(tables))


def _unpredicted(bos: int | None, eos: int | None) -> int:
    """How many tokens of the vocabulary are never predicted: <bos>, unless it is also the end."""
    return int(bos is not None and bos != eos)


def _narrow(values: np.ndarray) -> np.ndarray:
    """The same whole numbers in the narrowest unsigned type."""
    return values.astype(np.min_scalar_type(values.max(initial=0)))
