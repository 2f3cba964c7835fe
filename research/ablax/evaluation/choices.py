"""Choices: which of a few tokens fits a place, given all others; one ruler for causal and masked models."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from ablax.config import RequestError
from ablax.data.tokenizer import Tokenizer
from ablax.evaluation.pieces import Tokenized, frame, packed, windows
from ablax.evaluation.scores import MetricIdentity, Scores
from ablax.evaluation.scoring import (
    Batch,
    Over,
    Put,
    check_context,
    initial_carry,
    make_scores,
    owners,
    place,
    sum_documents,
)

BRACKETS = (")", "]", "}")


def bracket_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """The ids of the tokens that are one closing bracket and nothing else, in the order of `BRACKETS`.

    Raises:
      RequestError: if the vocabulary has fewer than two of them.
    """
    special = set(tokenizer.specials.ids())
    texts = {tokenizer.plain_text(i): i for i in range(tokenizer.vocab_size) if i not in special}
    found = [texts[bracket] for bracket in BRACKETS if bracket in texts]
    if len(found) < 2:
        raise RequestError(
            f"evaluation.choices asks for closing brackets, and the tokenizer has {len(found)} of {' '.join(BRACKETS)} "
            "as tokens of their own; set it to 0, or use data.tokenizer=bpe, byte or character"
        )
    return np.array(found, np.int32)


def questions(framed: np.ndarray, openers: np.ndarray, choices: np.ndarray, count: int):
    """Places [questions] in the framed tokens, rising: equally many for each choice, evenly spaced among its own.

    Args:
      openers: bool, places that no model could be asked about.
      choices: the tokens between which models choose.
      count: of questions at most.
    """
    chosen = []
    for token in choices:
        own = np.flatnonzero((framed == token) & ~openers)
        wanted = min(count // len(choices), len(own))
        chosen.append(own[np.arange(wanted) * len(own) // max(wanted, 1)])
    return np.sort(np.concatenate(chosen))


def score_choices(
    module: nn.Module,
    params: Any,
    store: Tokenized,
    *,
    choices: np.ndarray,
    mask: int | None,
    count: int,
    hyper: Mapping[str, Any],
    bos: int | None,
    eos: int | None,
    context_length: int,
    batch_rows: int = 8,
    names: Sequence[str] | None = None,
    put: Put = dict,
    over: Over = contextlib.nullcontext,
) -> tuple[Scores, MetricIdentity]:
    """p(token at a place | all other tokens of its window), among `choices`: what both families define.

    A masked model is asked for it directly. A causal one gives it as the ratio of the likelihoods of the window with
    each of the choices at the place (minimal pairs: Warstadt et al. 2020, arXiv:1912.00582), so that what follows the
    place counts too. Each choice is asked for equally often, as far as the documents hold it: a guess is right once in
    `len(choices)`. Nats are of the true token among the choices.

    Args:
      choices: int32 [choices], tokens of the vocabulary.
      mask: id of the mask token; None for a causal model.
      count: of questions at most.
      hyper: the model's traced knobs.
      bos, eos: ids of the document marks, or None.
      context_length: T, the longest window.
      batch_rows: B.
      put: places a batch (a dict of [B T] arrays) on the devices.
      over: says which devices share the rows of a batch; see `Over`.

    Raises:
      RequestError: if the documents hold none of the choices, or for a context length below 2 or above the model's
        positions.
    """
    check_context(module, context_length)
    framed, offsets = frame(store, bos, eos)
    pieces = windows(offsets, context_length, context_length, shift=0)
    openers = np.zeros(len(framed), bool)
    openers[pieces.starts] = True  # a causal model predicts no window's first token
    asked = questions(framed, openers, choices, count)
    if not len(asked):
        raise RequestError(
            "evaluation.choices: the documents hold no closing bracket to ask for; set it to 0"
        )
    # A copy of its window for each choice at each place.
    copies, shown = np.repeat(asked, len(choices)), np.tile(choices, len(asked))
    window = np.searchsorted(pieces.starts, copies, side="right") - 1
    starts, lengths = pieces.starts[window], pieces.lengths[window]

    def batches() -> Iterator[Batch]:
        for places in packed(lengths, context_length, batch_rows):
            copy, inside = places.pieces, places.inside
            source = starts[copy] + inside
            following = np.minimum(source + 1, starts[copy] + lengths[copy] - 1)
            targets = framed[source] if mask is not None else framed[following]
            at = source if mask is not None else source + 1
            seen = source == copies[copy]
            counted = at == copies[copy]
            if mask is None:
                counted = (at >= copies[copy]) & (at < starts[copy] + lengths[copy])
            yield place(
                places,
                (batch_rows, context_length),
                tokens=np.where(
                    seen, shown[copy] if mask is None else np.int32(mask), framed[source]
                ),
                targets=np.where(at == copies[copy], shown[copy], targets),
                loss_weights=counted.astype(np.float32),
                positions=inside.astype(np.int32),
                segment_ids=places.segment_ids.astype(np.int32),
                document_ids=copy.astype(np.int32),
            )

    carry = initial_carry(module, batch_rows)
    sums = sum_documents(module, params, hyper, batches(), len(copies), carry, put, over)
    found = _answers(-sums[0].reshape(len(asked), len(choices)), framed[asked], choices)
    owner, documents = owners(offsets)[asked], len(offsets) - 1
    totals = np.stack([np.bincount(owner, values, documents) for values in found])
    scores = make_scores(totals, store, names)
    identity = MetricIdentity(
        measure="choice",
        document_rule="document",
        context_length=context_length,
        stride=context_length,
        first_token=False,
        end=False,
        lossless=store.lossless,
        details=(("choices", len(choices)), ("questions", len(asked))),
    )
    return scores, identity


def _answers(logits: np.ndarray, truth: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """float64 [3, questions]: nats of the true choice, one, and whether it was the likeliest."""
    right = truth[:, None] == choices
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    best = right[np.arange(len(truth)), logits.argmax(axis=1)]
    return np.stack([-log_probs[right], np.ones(len(truth)), best.astype(float)])
