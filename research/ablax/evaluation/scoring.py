"""Scores of neural language models: documents to batches of one shape, nats per token back, sums on
the host.
"""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from ablax import placement
from ablax.config import RequestError
from ablax.data.tokenizer import Tokenizer
from ablax.evaluation.pieces import (
    Pieces,
    Places,
    Tokenized,
    frame,
    lanes,
    packed,
    tokenize,
    windows,
)
from ablax.evaluation.scores import MetricIdentity, Scores
from ablax.generation.decoders import position_limit
from ablax.objectives.causal import token_losses
from ablax.placement import Over

Batch = dict[str, np.ndarray]
Put = Callable[[Batch], Mapping[str, Any]]

_INPUTS = ("tokens", "targets", "positions", "segment_ids")


@functools.partial(jax.jit, static_argnames=("module", "over"))
def score_batch(module, params, hyper, batch, carry, over: Over):
    """Nats float32 [B T] and whether the target was the likeliest, bool [B T], at every place; and
    the carry.
    """
    with over():
        batch = {name: placement.constrain(rows, "B T") for name, rows in batch.items()}
        logits, carry = module.apply(
            {"params": params},
            batch["tokens"],
            batch["positions"],
            batch["segment_ids"],
            hyper=hyper,
            carry=carry,
        )
        nats, correct = token_losses(logits, batch["targets"])
        return placement.whole(nats), placement.whole(correct), carry


def place(places: Places, shape: tuple[int, int], **values: np.ndarray) -> Batch:
    """Puts values [n] of tokens to their places in arrays [B T] of their dtype, zero elsewhere."""
    batch = {}
    for name, value in values.items():
        batch[name] = np.zeros(shape, value.dtype)
        batch[name].reshape(-1)[places.at] = value
    return batch


def sum_documents(
    module: nn.Module,
    params: Any,
    hyper: Mapping[str, Any],
    batches: Iterable[Batch],
    documents: int,
    carry: Any = (),
    put: Put = dict,
    over: Over = contextlib.nullcontext,
) -> np.ndarray:
    """Runs the model over batches and adds up what counts, in float64.

    Args:
      batches: the model's inputs, `targets`, `loss_weights` (counts where > 0) and `document_ids`,
        int32 [B T].
      documents: how many documents there are.
      carry: the state before the first batch; each batch gets the state after the one before.
      put: places a batch on the devices.
      over: says which devices share the rows of a batch; see `Over`.

    Returns:
      float64 [3, documents]: nats, tokens, correct.
    """
    sums = np.zeros((3, documents))
    running = collections.deque()

    def collect():
        nats, correct, batch = running.popleft()
        counted = batch["loss_weights"] > 0
        ids = batch["document_ids"][counted]
        for row, values in enumerate((np.asarray(nats), None, np.asarray(correct))):
            np.add.at(sums[row], ids, 1.0 if values is None else values[counted].astype(float))

    for batch in batches:
        inputs = put({key: value for key, value in batch.items() if key in _INPUTS})
        nats, correct, carry = score_batch(module, params, hyper, inputs, carry, over)
        running.append((nats, correct, batch))
        if len(running) > 1:  # never more than two programs in flight
            collect()
    while running:
        collect()
    return sums


def initial_carry(module: nn.Module, rows: int) -> Any:
    """The state of a recurrent module, `()` for others."""
    carry = module.init_carry(rows) if hasattr(module, "init_carry") else ()  # type: ignore[attr-defined]
    return carry if jax.tree.leaves(carry) else ()


def check_context(module: nn.Module, context_length: int) -> None:
    """Raises RequestError if the module has no positions for a context of this length."""
    limit = position_limit(module)
    if limit is not None and context_length > limit:
        raise RequestError(
            f"a context of {context_length} tokens exceeds the model's {limit} learned positions; "
            f"set evaluation.context to at most {limit}, with evaluation.stride if you like"
        )


def _batches(
    framed: np.ndarray,
    owner: np.ndarray,
    pieces: Pieces,
    placed: Iterable[Places],
    shape: tuple[int, int],
) -> Iterator[Batch]:
    for places in placed:
        source = pieces.starts[places.pieces] + places.inside
        counted = places.inside >= pieces.counted_from[places.pieces]
        yield place(
            places,
            shape,
            tokens=framed[source],
            targets=framed[source + 1],
            loss_weights=counted.astype(np.float32),
            positions=places.inside.astype(np.int32),
            segment_ids=places.segment_ids.astype(np.int32),
            document_ids=owner[source + 1],
        )


def owners(offsets: np.ndarray) -> np.ndarray:
    """Which document each framed token belongs to, int32 [total]."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))


def make_scores(sums: np.ndarray, store: Tokenized, names: Sequence[str] | None) -> Scores:
    """Scores from sums [3, documents]; names are the documents' numbers by default."""
    nats, tokens, correct = sums
    names = names if names is not None else [str(index) for index in range(len(nats))]
    return Scores(nats, tokens, correct, np.asarray(store.byte_counts, float), tuple(names))


def score_documents(
    module: nn.Module,
    params: Any,
    store: Tokenized,
    *,
    hyper: Mapping[str, Any],
    bos: int | None,
    eos: int | None,
    context_length: int,
    stride: int | None = None,
    document_rule: Literal["document", "stream"] = "document",
    batch_rows: int = 8,
    names: Sequence[str] | None = None,
    put: Put = dict,
    over: Over = contextlib.nullcontext,
) -> tuple[Scores, MetricIdentity]:
    """Scores documents with a causal module. The sums do not depend on how batches are made.

    By rule `document` each is read from its own start, as <bos> tokens <eos>; without <bos> its
    first token has no context and does not count. By rule `stream` all of them, with the same
    marks, are one text of which all tokens but the first count, as nanoGPT evaluates a split; nats
    go to the document that the predicted token belongs to.

    A text longer than the context is read in windows. A recurrent module carries its state instead
    and has seen all of a document so far; a stream it reads as `batch_rows` equal parts, each from
    an empty state.

    Args:
      hyper: the model's traced knobs.
      bos, eos: ids of the document marks, or None.
      context_length: T, columns of a batch and, unless the module is recurrent, tokens of context
        at most.
      stride: how far windows move, counting only what is new; None: windows do not overlap.
      batch_rows: B.
      names: of the documents; their numbers by default.
      put: places a batch (a dict of [B T] arrays) on the devices.
      over: says which devices share the rows of a batch; see `Over`.

    Raises:
      RequestError: for a stride or context length out of range (the model's positions included), or
        a stride with a recurrent module.
    """
    check_context(module, context_length)
    framed, offsets = frame(store, bos, eos)
    shape = (batch_rows, context_length)
    carry = initial_carry(module, batch_rows)
    recurrent = bool(jax.tree.leaves(carry))
    if recurrent and stride is not None:
        raise RequestError(f"stride={stride}: a recurrent model carries its state; leave it out")
    bounds = offsets if document_rule == "document" else offsets[[0, -1]]
    if recurrent:
        parts = 1 if document_rule == "document" else batch_rows
        whole = max(2, -(-int(np.diff(bounds).max() - 1) // parts))
        pieces = windows(bounds, whole, whole, shift=1)
        placed = lanes(pieces.lengths, context_length, batch_rows)
    else:
        pieces = windows(bounds, context_length, stride or context_length, shift=1)
        placed = packed(pieces.lengths, context_length, batch_rows)
    batches = _batches(framed, owners(offsets), pieces, placed, shape)
    sums = sum_documents(module, params, hyper, batches, len(offsets) - 1, carry, put, over)
    identity = MetricIdentity(
        measure="likelihood",
        document_rule=document_rule,
        context_length=None if recurrent else context_length,
        stride=None if recurrent else stride or context_length,
        first_token=bos is not None or document_rule == "stream",
        end=eos is not None,
        lossless=store.lossless,
        details=(("parts", batch_rows),) if recurrent and document_rule == "stream" else (),
    )
    return make_scores(sums, store, names), identity


@dataclasses.dataclass(frozen=True, eq=False)
class NeuralScorer:
    """`Scorer` of a causal Linen module. See `score_documents`."""

    module: nn.Module
    params: Any
    tokenizer: Tokenizer
    hyper: Mapping[str, Any]
    context_length: int
    stride: int | None = None
    batch_rows: int = 8

    def evaluate(
        self, documents: Sequence[str], names: Sequence[str] | None = None
    ) -> tuple[Scores, MetricIdentity]:
        """The scores of texts, and what they may be compared with."""
        specials = self.tokenizer.specials
        return score_documents(
            self.module,
            self.params,
            tokenize(self.tokenizer, documents),
            hyper=self.hyper,
            bos=specials.bos,
            eos=specials.eos,
            context_length=self.context_length,
            stride=self.stride,
            batch_rows=self.batch_rows,
            names=names,
        )

    def score(self, documents: Sequence[str]) -> Scores:
        """See `Scorer`."""
        return self.evaluate(documents)[0]
