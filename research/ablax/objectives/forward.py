"""The model's forward pass as an objective sees it: logits of a batch, or sums over logits that never all exist."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ablax.config import RequestError
from ablax.objectives.batch import Batch, Losses
from ablax.objectives.sums import Sums
from ablax.shapes import Array

OWN = ("losses", "reports")
"""Collections into which a model sows what its objective does not see, one value [B] per row and layer: `losses`, in
nats per position, are descended too, `reports` stand in the records under the names that they are sown by."""

Score = Callable[[Array, Batch], Any]
"""(logits float32 [B C V], the batch's arrays [B C]) -> a tree of sums; positions without a weight must not count."""


def splits(module: Any) -> bool:
    """Whether a Linen module can compute its head apart: methods `features` and `logits` (see `Transformer`)."""
    return all(callable(getattr(module, name, None)) for name in ("features", "logits"))


class HandedOn(struct.PyTreeNode):
    """What an objective hands on as it got it: the carry, and what the model sowed.

    Attributes:
      carry: a recurrent model's state.
      loss: of the model itself, summed over all layers and counted positions; None if it sowed none.
      reports: by name, means over layers.
    """

    carry: Any
    loss: Array | None
    reports: Mapping[str, Sums]


def losses_of(objective: Any, apply: "Forward", batch: Batch, hyper: Mapping[str, Any]) -> Losses:
    """An objective's loss and metrics of a batch; in a training pass with the model's own losses.

    Raises:
      RequestError: if the objective does not hand on what `apply` gave it.
    """
    loss, metrics, handed = objective.loss(apply, batch, hyper)
    if not isinstance(handed, HandedOn):
        raise RequestError(
            f"{type(objective).__name__}.loss must return as its third value what `apply` gave it beside the logits: "
            "it holds the carry and the model's own losses"
        )
    if handed.loss is not None and apply.key is not None:
        loss = Sums(loss.total + handed.loss, loss.count)
    return loss, {**metrics, **handed.reports}, handed.carry


@dataclasses.dataclass(frozen=True, eq=False)
class Forward:
    """A function of a batch: `apply(batch) -> (logits float32 [B T V], what to hand on)`.

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

    def __call__(self, batch: Batch) -> tuple[Array, HandedOn]:
        """All logits, and what the objective has to hand on."""
        return self._apply(batch, "__call__")

    def sums(self, batch: Batch, score: Score, capacity: int | None = None) -> tuple[Any, HandedOn]:
        """The sums of `score` over all positions, and what the objective has to hand on.

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
        # The last chunk is filled up, so one that is longer than the row would compute more than all of it.
        return self._chunked(features, part, score, min(self.chunk, features.shape[1])), carry

    def _apply(self, batch: Batch, method: str) -> tuple[Array, HandedOn]:
        (output, carry), sown = self.module.apply(
            {"params": self.params},
            batch["tokens"],
            batch["positions"],
            batch["segment_ids"],
            hyper=self.hyper,
            carry=self.carry,
            train=self.key is not None,
            rngs={"dropout": self.key} if self.key is not None else None,
            method=method,
            mutable=list(OWN),
        )
        return output, _handed_on(carry, sown, batch)

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


def _handed_on(carry: Any, sown: Mapping[str, Any], batch: Batch) -> HandedOn:
    """Every row counts as often as it has positions that count, so that one division by their number gives means."""
    values: dict[str, dict[str, list[Array]]] = {kind: {} for kind in OWN}
    for kind in OWN:
        for path, leaf in jax.tree_util.tree_leaves_with_path(sown.get(kind, {})):
            values[kind].setdefault(_name(path), []).append(leaf.reshape(-1, leaf.shape[-1]))
    if not any(values.values()):
        return HandedOn(carry, None, {})
    counted = (batch["loss_weights"] > 0).sum(axis=1, dtype=jnp.int32)
    layers = [layer for found in values["losses"].values() for layer in found]
    loss = (jnp.concatenate(layers).sum(0) * counted).sum() if layers else None
    reports = {
        name: Sums((jnp.concatenate(found).mean(0) * counted).sum(), counted.sum())
        for name, found in values["reports"].items()
    }
    return HandedOn(carry, loss, reports)


def _name(path: Any) -> str:
    """`expert_load_3` of blocks/experts/expert_load/(what was sown first)/3."""
    at = next(i for i, key in enumerate(path) if isinstance(key, jax.tree_util.SequenceKey))
    return "_".join(str(key.key) for key in (path[at - 1], *path[at + 1 :]))


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
