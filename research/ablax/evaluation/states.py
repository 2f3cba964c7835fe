"""States: what a frozen model holds at each token of some documents."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ablax import placement
from ablax.config import RequestError
from ablax.evaluation.pieces import Documents, frame, packed, windows
from ablax.evaluation.scoring import Batch, Over, Put, place


@functools.partial(jax.jit, static_argnames=("module", "depth", "over"))
def hidden(module, params, hyper, batch, depth: float, over: Over):
    """States float32 [B T D] of a layer, `depth` of the way up; 1: what the head reads."""
    with over():
        batch = {name: placement.constrain(rows, "B T") for name, rows in batch.items()}
        (states, _), sown = module.apply(
            {"params": params},
            batch["tokens"],
            batch["positions"],
            batch["segment_ids"],
            hyper=hyper,
            method="features",
            mutable=[] if depth == 1 else ["intermediates"],
        )
        if depth != 1:
            states = _layer(module, sown.get("intermediates", {}), depth)
        return placement.whole(states.astype(jnp.float32))


def _layer(module: nn.Module, sown: Mapping[str, Any], depth: float):
    if "blocks" in sown:
        (states,) = sown["blocks"]["output"]
    elif "output" in sown:
        states = sown["output"]
    else:
        raise RequestError(
            f"evaluation.probe_layer={depth}: {type(module).__name__} sows no `output` of its layers; set it to 1"
        )
    return states[max(1, round(depth * len(states))) - 1]


@functools.partial(jax.jit, static_argnames=("module", "shape", "over"))
def untrained(module, hyper, shape: tuple[int, int], over: Over):
    """The module's parameters before any training; it is shown rows of this shape [B T]."""
    with over():
        ones = jnp.ones(shape, jnp.int32)
        return module.init(jax.random.key(0), ones, ones, ones, hyper=hyper)["params"]


def check_states(module: nn.Module, hyper: Any, depth: float) -> None:
    """Raises RequestError if a module does not show the states of this layer; nothing is compiled."""
    if not callable(getattr(module, "features", None)):
        raise RequestError(
            f"evaluation.probe_documents: {type(module).__name__} has no method `features`, whose states probes read; "
            "add one, or set it to 0"
        )
    shape, over = (1, 2), contextlib.nullcontext
    ones = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = {"tokens": ones, "positions": ones, "segment_ids": ones}
    params = jax.eval_shape(lambda h: untrained(module, h, shape, over), hyper)
    jax.eval_shape(lambda p, h, b: hidden(module, p, h, b, depth, over), params, hyper, batch)


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """Reads documents with a module, in windows that overlap by half; each from an empty state, whatever the family.

    Every token is read in the second half of one window, or in its document's first.

    Attributes:
      hyper: the model's traced knobs.
      bos, eos: ids of the document marks, or None; they are seen and no token.
      context_length: T, the longest window.
      depth: of the layer; see `hidden`.
      batch_rows: B.
      put: places a batch (a dict of [B T] arrays) on the devices.
      over: says which devices share the rows of a batch; see `Over`.
    """

    module: nn.Module
    hyper: Mapping[str, Any]
    bos: int | None
    eos: int | None
    context_length: int
    depth: float
    batch_rows: int
    put: Put
    over: Over

    @property
    def stride(self) -> int:
        """How far a window moves, in tokens."""
        return max(1, self.context_length // 2)

    def states(
        self, params: Any, documents: Documents, asked: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """States float64 [n D] of tokens, and which ones of the documents they are, [n]; each once, in any order.

        Args:
          asked: bool [total], the tokens that are wanted.
        """
        for batch, at, tokens in self._batches(documents, asked):
            states = np.asarray(
                hidden(self.module, params, self.hyper, self.put(batch), self.depth, self.over)
            )
            yield states.reshape(-1, states.shape[-1])[at].astype(np.float64), tokens

    def untrained(self) -> Any:
        """The module's parameters before any training."""
        shape = (self.batch_rows, self.context_length)
        return untrained(self.module, self.hyper, shape, self.over)

    def _batches(
        self, documents: Documents, asked: np.ndarray
    ) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
        framed, offsets = frame(documents, self.bos, self.eos)
        numbers = np.arange(len(documents.tokens))
        unmarked = [None if mark is None else -1 for mark in (self.bos, self.eos)]
        numbers, _ = frame(dataclasses.replace(documents, tokens=numbers), *unmarked)
        wanted = np.append(asked, False)[numbers]
        pieces = windows(offsets, self.context_length, self.stride, shift=0)
        for places in packed(pieces.lengths, self.context_length, self.batch_rows):
            source = pieces.starts[places.pieces] + places.inside
            counted = wanted[source] & (places.inside >= pieces.counted_from[places.pieces])
            batch = place(
                places,
                (self.batch_rows, self.context_length),
                tokens=framed[source],
                positions=places.inside.astype(np.int32),
                segment_ids=places.segment_ids.astype(np.int32),
            )
            yield batch, places.at[counted], numbers[source[counted]]
