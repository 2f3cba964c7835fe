"""The model's forward pass as an objective sees it: logits of a batch, or sums over logits that never all exist."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ablax.objectives.batch import Batch
from ablax.shapes import Array

Score = Callable[[Array, Batch], Any]
"""(logits float32 [B C V], the batch's arrays [B C]) -> a tree of sums; positions without a weight must not count."""


def splits(module: Any) -> bool:
    """Whether a Linen module can compute its head apart: methods `features` and `logits` (see `Transformer`)."""
    return all(callable(getattr(module, name, None)) for name in ("features", "logits"))


@dataclasses.dataclass(frozen=True, eq=False)
class Forward:
    """A function of a batch: `apply(batch) -> (logits float32 [B T V], carry)`.

    Attributes:
      module: the Linen model.
      params: its parameters.
      hyper: its traced knobs.
      carry: a recurrent model's state.
      key: of dropout; with one it is a training pass.
      chunk: positions of a row whose logits may exist at once in `sums`; None = all.
    """

    module: Any
    params: Any
    hyper: Mapping[str, Any]
    carry: Any
    key: Array | None
    chunk: int | None = None

    def __call__(self, batch: Batch) -> tuple[Array, Any]:
        """All logits, and the carry."""
        return self._apply(batch, "__call__")

    def sums(self, batch: Batch, score: Score, capacity: int | None = None) -> tuple[Any, Any]:
        """The sums of `score` over all positions, and the carry.

        Args:
          score: sums of some positions.
          capacity: no row has more positions with a loss weight than this; the head computes only as many. None = T.
        """
        length = batch["tokens"].shape[1]
        if capacity is not None and (capacity >= length or not splits(self.module)):
            capacity = None
        if capacity is None and self.chunk is None:
            logits, carry = self(batch)
            return score(logits, batch), carry
        features, carry = self._apply(batch, "features")
        shape = batch["tokens"].shape
        part = {name: rows for name, rows in batch.items() if rows.shape[:2] == shape}
        if capacity is not None:
            features, part = _counted((features, part), part["loss_weights"], capacity)
        if self.chunk is None:
            return score(self._logits(features), part), carry
        return self._chunked(features, part, score, self.chunk), carry

    def _apply(self, batch: Batch, method: str) -> tuple[Array, Any]:
        return self.module.apply(
            {"params": self.params},
            batch["tokens"],
            batch["positions"],
            batch["segment_ids"],
            hyper=self.hyper,
            carry=self.carry,
            train=self.key is not None,
            rngs={"dropout": self.key} if self.key is not None else None,
            method=method,
        )

    def _logits(self, features: Array) -> Array:
        return self.module.apply(
            {"params": self.params}, features, hyper=self.hyper, method="logits"
        )

    def _chunked(self, features: Array, part: Batch, score: Score, size: int) -> Any:
        def body(total: Any, chunk: tuple[Array, Batch]) -> tuple[Any, None]:
            sums = score(self._logits(chunk[0]), chunk[1])
            return jax.tree.map(jnp.add, total, sums), None

        chunks = jax.tree.map(lambda x: _chunks(x, size), (features, part))
        shapes = jax.eval_shape(lambda f, p: score(self._logits(f), p), *_first(chunks))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        # Without recomputation the scan would keep the logits of every chunk for the backward pass.
        body = jax.checkpoint(body, prevent_cse=False)
        return jax.lax.scan(body, zeros, chunks)[0]


def _first(chunks: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), chunks)


def _chunks(x: Array, size: int) -> Array:
    """[B T ...] -> [T/size B size ...]; what the last chunk lacks is zeros, which have no loss weight."""
    missing = -x.shape[1] % size
    x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _counted(tree: Any, weights: Array, capacity: int) -> Any:
    """[B T ...] -> [B capacity ...]: all positions with a weight, in order, and some without."""
    order = jnp.argsort(weights <= 0, axis=1, stable=True)[:, :capacity]
    take = jax.vmap(lambda x, at: x.at[at].get(unique_indices=True, mode="promise_in_bounds"))
    return jax.tree.map(lambda x: take(x, order), tree)
