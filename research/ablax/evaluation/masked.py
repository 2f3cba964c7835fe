"""Scores of masked models: accuracy under a fixed masking, and the pseudo-log-likelihood."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from ablax.config import RequestError
from ablax.data.tokenizer import Tokenizer
from ablax.evaluation.pieces import Pieces, Tokenized, frame, packed, tokenize, windows
from ablax.evaluation.scores import MetricIdentity, Scores
from ablax.evaluation.scoring import (
    Batch,
    Over,
    Put,
    check_context,
    make_scores,
    owners,
    place,
    sum_documents,
)
from ablax.generation.filling import mask_token
from ablax.objectives.batch import Vocabulary
from ablax.objectives.masked import MaskedConfig


def _identity(measure, store: Tokenized, bos, eos, context_length: int, **details):
    return MetricIdentity(
        measure=measure,
        document_rule="document",
        context_length=context_length,
        stride=context_length,
        first_token=True,
        end=False,
        lossless=store.lossless,
        details=(("bos", bos is not None), ("eos", eos is not None), *details.items()),
    )


def _hidden(
    objective: MaskedConfig,
    vocabulary: Vocabulary,
    framed: np.ndarray,
    pieces: Pieces,
    documents: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The framed tokens as the objective shows them, int32, and which of them it asks for, bool."""
    shown, asked = framed.copy(), np.zeros(len(framed), bool)
    number = np.arange(len(documents)) - np.searchsorted(documents, documents)  # in its document
    for start, length, document, window in zip(pieces.starts, pieces.lengths, documents, number):
        index = np.arange(length + 1, dtype=np.int32)  # the objective leaves out a row's last place
        row = {
            "tokens": np.append(framed[start : start + length], 0).astype(np.int32),
            "positions": index,
            "segment_ids": np.ones_like(index),
        }
        rng = np.random.default_rng([seed, int(document), int(window)])
        masked = objective.transform(row, rng, vocabulary)
        shown[start : start + length] = masked["tokens"]
        asked[start : start + length] = masked["loss_weights"] > 0
    return shown, asked


def score_masked(
    module: nn.Module,
    params: Any,
    store: Tokenized,
    *,
    objective: MaskedConfig,
    vocabulary: Vocabulary,
    hyper: Mapping[str, Any],
    bos: int | None,
    eos: int | None,
    context_length: int,
    seed: int = 0,
    batch_rows: int = 8,
    names: Sequence[str] | None = None,
    put: Put = dict,
    over: Over = contextlib.nullcontext,
) -> tuple[Scores, MetricIdentity]:
    """Predicts the tokens that the objective hides in each document's windows, the same ones at
    every call.

    What is hidden depends on the seed, the document's number and the window alone, not on how
    windows share rows.

    Args:
      objective: selects and hides tokens, as in training.
      hyper: the model's traced knobs.
      bos, eos: ids of the document marks, or None; they are never hidden.
      context_length: T, the longest window.
      seed: of the masking.
      batch_rows: B.
      put: places a batch (a dict of [B T] arrays) on the devices.
      over: says which devices share the rows of a batch; see `Over`.

    Raises:
      RequestError: for a context length below 2 or above the model's positions.
    """
    check_context(module, context_length)
    framed, offsets = frame(store, bos, eos)
    owner = owners(offsets)
    pieces = windows(offsets, context_length, context_length, shift=0)
    shown, asked = _hidden(objective, vocabulary, framed, pieces, owner[pieces.starts], seed)

    def batches() -> Iterator[Batch]:
        for places in packed(pieces.lengths, context_length, batch_rows):
            source = pieces.starts[places.pieces] + places.inside
            yield place(
                places,
                (batch_rows, context_length),
                tokens=shown[source],
                targets=framed[source],
                loss_weights=asked[source].astype(np.float32),
                positions=places.inside.astype(np.int32),
                segment_ids=places.segment_ids.astype(np.int32),
                document_ids=owner[source],
            )

    sums = sum_documents(module, params, hyper, batches(), len(offsets) - 1, put=put, over=over)
    shares = {"rate": objective.rate, "unit": objective.unit, "seed": seed}
    identity = _identity("masked", store, bos, eos, context_length, **shares)
    return make_scores(sums, store, names), identity


def score_pseudo_likelihood(
    module: nn.Module,
    params: Any,
    store: Tokenized,
    *,
    mask: int,
    hyper: Mapping[str, Any],
    bos: int | None,
    eos: int | None,
    context_length: int,
    every: int = 1,
    max_documents: int | None = None,
    batch_rows: int = 8,
    names: Sequence[str] | None = None,
    put: Put = dict,
    over: Over = contextlib.nullcontext,
) -> tuple[Scores, MetricIdentity]:
    """Pseudo-log-likelihood (Salazar et al. 2020, section 2): each token given all others of its
    window.

    One masked copy of the window per token; copies of short documents share rows. Cost grows with
    the square of a document's length, so `every` and `max_documents` bound it.

    Args:
      mask: id of the mask token.
      hyper: the model's traced knobs.
      bos, eos: ids of the document marks, or None; they are seen but do not count.
      context_length: T, the longest window.
      every: scores tokens 0, `every`, 2 `every`, ... of each document; its bytes count in
        proportion.
      max_documents: scores that many documents, evenly spaced; the others have zero tokens and
        bytes.
      batch_rows: B.
      put: places a batch (a dict of [B T] arrays) on the devices.
      over: says which devices share the rows of a batch; see `Over`.

    Raises:
      RequestError: for `every` or `max_documents` below 1, or a context length that is
        below 2 or above the model's positions.
    """
    for name, value in (("every", every), ("max_documents", max_documents)):
        if value is not None and value < 1:
            raise RequestError(f"{name}={value} must be at least 1")
    check_context(module, context_length)
    framed, offsets = frame(store, bos, eos)
    owner = owners(offsets)
    documents = len(offsets) - 1
    pieces = windows(offsets, context_length, context_length, shift=0)
    # The framed tokens that are scored, each with the window that it lies in.
    inside = np.arange(len(framed)) - offsets[owner] - (bos is not None)
    count = np.diff(store.offsets)
    limit = min(max_documents or documents, documents)
    chosen = np.zeros(documents, bool)
    chosen[np.arange(limit) * documents // limit] = True
    scored = (inside >= 0) & (inside < count[owner]) & (inside % every == 0) & chosen[owner]
    places_scored = np.flatnonzero(scored)
    window = np.searchsorted(pieces.starts, places_scored, side="right") - 1

    def batches() -> Iterator[Batch]:
        for places in packed(pieces.lengths[window], context_length, batch_rows):
            source = pieces.starts[window[places.pieces]] + places.inside
            asked = source == places_scored[places.pieces]
            yield place(
                places,
                (batch_rows, context_length),
                tokens=np.where(asked, np.int32(mask), framed[source]),
                targets=framed[source],
                loss_weights=asked.astype(np.float32),
                positions=places.inside.astype(np.int32),
                segment_ids=places.segment_ids.astype(np.int32),
                document_ids=owner[source],
            )

    sums = sum_documents(module, params, hyper, batches(), documents, put=put, over=over)
    scores = make_scores(sums, store, names)
    share = scores.tokens / np.maximum(count, 1)
    scores = dataclasses.replace(scores, bytes=scores.bytes * share)
    identity = _identity(
        "pseudo_likelihood", store, bos, eos, context_length, every=every, documents=limit
    )
    return scores, identity


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedScorer:
    """`Scorer` of a masked Linen module by pseudo-log-likelihood. See `score_pseudo_likelihood`."""

    module: nn.Module
    params: Any
    tokenizer: Tokenizer
    hyper: Mapping[str, Any]
    context_length: int
    every: int = 1
    batch_rows: int = 8

    def evaluate(
        self, documents: Sequence[str], names: Sequence[str] | None = None
    ) -> tuple[Scores, MetricIdentity]:
        """The scores of texts, and what they may be compared with."""
        specials = self.tokenizer.specials
        return score_pseudo_likelihood(
            self.module,
            self.params,
            tokenize(self.tokenizer, documents),
            mask=mask_token(self.tokenizer),
            hyper=self.hyper,
            bos=specials.bos,
            eos=specials.eos,
            context_length=self.context_length,
            every=self.every,
            batch_rows=self.batch_rows,
            names=names,
        )

    def score(self, documents: Sequence[str]) -> Scores:
        """See `Scorer`."""
        return self.evaluate(documents)[0]
