"""Samples of a split's documents: the same ones for every model and seed."""

import numpy as np
from jaxtyping import Int64

from ablax.config import RequestError
from ablax.data.corpus import Corpus
from ablax.evaluation.labels import token_labels
from ablax.evaluation.pieces import Documents
from ablax.evaluation.probes import Labelled

Chosen = Int64[np.ndarray, " documents"]


def check_split(corpus: Corpus, split: str) -> None:
    """Raises RequestError if there is no such split."""
    if split not in corpus.stores:
        raise RequestError(f"there is no split {split!r}; there are: {', '.join(corpus.stores)}")


def choose(corpus: Corpus, split: str, count: int | None, without: Chosen | None = None) -> Chosen:
    """The numbers of a split's documents, or of a fixed sample of them, rising.

    Args:
      count: of documents at most; None: all.
      without: documents that are not wanted.

    Raises:
      RequestError: if there is no such split.
    """
    check_split(corpus, split)
    chosen = np.arange(len(corpus.stores[split]))
    if without is not None:
        chosen = np.setdiff1d(chosen, without)
    if count is not None and count < len(chosen):
        chosen = np.sort(np.random.default_rng(0).choice(chosen, count, replace=False))
    return chosen


def take(corpus: Corpus, split: str, chosen: Chosen) -> tuple[Documents, tuple[str, ...]]:
    """The tokens of these documents, and their names."""
    store, source = corpus.stores[split], corpus.sources[split]
    lengths = np.diff(store.offsets)[chosen]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.concatenate([store.document(int(i)) for i in chosen])
    names = tuple(source.name(int(i)) for i in chosen)
    return Documents(tokens, offsets, store.byte_counts[chosen], store.lossless), names


def label(corpus: Corpus, split: str, chosen: Chosen, kind: str) -> Labelled:
    """These documents with the labels of their tokens.

    Raises:
      RequestError: see `token_labels`.
    """
    documents, _ = take(corpus, split, chosen)
    texts = [corpus.sources[split][int(i)] for i in chosen]
    return Labelled(documents, token_labels(kind, corpus.tokenizer, texts, documents))


def probed(
    corpus: Corpus, split: str, tested: Chosen, count: int, kind: str
) -> tuple[Labelled, Labelled]:
    """Documents on which probes are measured, and others of the training split to which they are fitted.

    Args:
      tested: numbers of documents of the split.
      count: of training documents.
      kind: of label.

    Raises:
      RequestError: if no training document is left, or see `token_labels`.
    """
    others = choose(corpus, "train", count, without=tested if split == "train" else None)
    if not len(others):
        raise RequestError(
            f"evaluation.probe_documents={count}: split {split!r} leaves no training document to fit probes to; "
            "set evaluation.documents"
        )
    return label(corpus, split, tested, kind), label(corpus, "train", others, kind)
