"""Scores of n-gram models, on the same documents and tokens as the neural ones."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ablax.data.tokenizer import Tokenizer
from ablax.evaluation.pieces import Tokenized, frame, tokenize
from ablax.evaluation.scores import MetricIdentity, Scores
from ablax.evaluation.scoring import make_scores, owners
from ablax.models.ngram import Ngram

_CHUNK_VALUES = 1 << 23  # log-probabilities held at once while the likeliest tokens are sought


def _correct(model: Ngram, framed: np.ndarray, offsets: np.ndarray, places: np.ndarray):
    """Whether the framed token at each place is the likeliest one there, bool [places]."""
    width = model.config.order - 1
    begins = offsets[:-1][owners(offsets)[places]]
    rows = max(1, _CHUNK_VALUES // model.vocab_size)
    result = np.zeros(len(places), bool)
    for first in range(0, len(places), rows):
        chunk = slice(first, first + rows)
        index = places[chunk, None] - np.arange(width, 0, -1)
        inside = index >= begins[chunk, None]
        contexts = np.where(inside, framed[np.maximum(index, 0)], -1)
        best = model.log_probs(contexts).argmax(axis=-1)
        result[chunk] = best == framed[places[chunk]]
    return result


def score_documents_by_ngram(
    model: Ngram,
    store: Tokenized,
    *,
    accuracy: bool = False,
    names: Sequence[str] | None = None,
) -> tuple[Scores, MetricIdentity]:
    """Scores each document from its own start with the marks that the model was fitted with.

    Without <bos> the first token does not count, as for the models that need a context for it.

    Args:
      accuracy: also count the likeliest tokens; costs a distribution over V per token.
      names: of the documents; their numbers by default.
    """
    framed, offsets = frame(store, model.bos, model.eos)
    owner = owners(offsets)
    is_first = np.zeros(len(framed), bool)
    is_first[offsets[:-1][np.diff(offsets) > 0]] = True
    places = np.flatnonzero(~is_first)
    nats = model.score(np.asarray(store.tokens), np.asarray(store.offsets))
    if model.bos is None:
        nats = nats[places]
    sums = np.full((3, len(offsets) - 1), np.nan)
    sums[0] = np.bincount(owner[places], nats, len(offsets) - 1)
    sums[1] = np.bincount(owner[places], minlength=len(offsets) - 1)
    if accuracy:
        correct = _correct(model, framed, offsets, places)
        sums[2] = np.bincount(owner[places], correct, len(offsets) - 1)
    identity = MetricIdentity(
        measure="likelihood",
        document_rule="document",
        context_length=None,
        stride=None,
        first_token=model.bos is not None,
        end=model.eos is not None,
        lossless=store.lossless,
    )
    return make_scores(sums, store, names), identity


@dataclasses.dataclass(frozen=True, eq=False)
class NgramScorer:
    """`Scorer` of a fitted n-gram model. See `score_documents_by_ngram`."""

    model: Ngram
    tokenizer: Tokenizer

    def evaluate(
        self, documents: Sequence[str], names: Sequence[str] | None = None
    ) -> tuple[Scores, MetricIdentity]:
        """The scores of texts, and what they may be compared with."""
        return score_documents_by_ngram(
            self.model, tokenize(self.tokenizer, documents), names=names
        )

    def score(self, documents: Sequence[str]) -> Scores:
        """See `Scorer`."""
        return self.evaluate(documents)[0]
