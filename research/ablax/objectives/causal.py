"""Causal language modelling: predict each token from those before it in the same segment."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ablax.config import RequestError, knob
from ablax.objectives.batch import Batch, Losses, Vocabulary, token_spec
from ablax.objectives.forward import Forward
from ablax.objectives.sums import Sums
from ablax.shapes import Array, Float, Int, typed


@typed
def token_losses(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Array]:
    """Negative log-likelihood in nats and whether the target has the largest logit, per position."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # The largest logit is computed for the normaliser anyway; argmax would be a second, slower pass.
    return normaliser - chosen, chosen >= logits.max(axis=-1)


@typed
def smoothed(
    nats: Float[Array, "B T"], logits: Float[Array, "B T V"], rate: Array | float
) -> Float[Array, "B T"]:
    """Cross entropy against `(1 - rate) * target + rate / V` (Szegedy et al. 2016, section 7)."""
    uniform = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
    return (1 - rate) * nats + rate * uniform


def weighted_losses(
    logits: Array, batch: Batch, label_smoothing: Array | float | None
) -> tuple[Sums, dict[str, Sums]]:
    """The loss that is descended and the plain nats and accuracy, over positions with a weight.

    Args:
      logits: float32 [B T V].
      batch: `targets`, `loss_weights`.
      label_smoothing: None leaves it out of the program.
    """
    nats, correct = token_losses(logits, batch["targets"])
    weights = batch["loss_weights"]
    counted = weights > 0
    descended = nats if label_smoothing is None else smoothed(nats, logits, label_smoothing)
    metrics = {
        "nats_per_token": Sums.of(nats, counted),
        "accuracy": Sums.of(correct.astype(jnp.float32), counted),
    }
    return Sums((descended * weights).sum(), counted.sum(dtype=jnp.int32)), metrics


@dataclasses.dataclass(frozen=True)
class CausalConfig:
    """Next-token prediction (Bengio et al. 2003; Radford et al. 2019)."""

    CAUSAL: ClassVar[bool] = True

    label_smoothing: float = knob(
        0.0, "Share of the target's probability spread evenly over the vocabulary.", traced=True
    )

    def __post_init__(self):
        if self.label_smoothing < 0 or self.label_smoothing >= 1:
            raise RequestError(f"label_smoothing={self.label_smoothing} must lie in [0, 1)")

    def specials(self, document_marks: bool) -> tuple[str, ...]:
        """Names of the special tokens that this objective needs."""
        return ("bos", "eos") if document_marks else ()

    def transform(
        self, row: Mapping[str, np.ndarray], rng: np.random.Generator, vocabulary: Vocabulary
    ) -> dict[str, np.ndarray]:
        """A row [T+1] of a layout to a batch row [T]: each token's target is its successor in its own segment."""
        del rng, vocabulary
        segments = row["segment_ids"]
        counted = (segments[1:] == segments[:-1]) & (segments[1:] != 0)
        return {
            "tokens": row["tokens"][:-1],
            "targets": row["tokens"][1:],
            "loss_weights": counted.astype(np.float32),
            "positions": row["positions"][:-1],
            "segment_ids": segments[:-1],
        }

    def batch_spec(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch."""
        return token_spec(batch_size, length)

    def loss(self, apply: Forward, batch: Batch, hyper: Mapping[str, Any]) -> Losses:
        """Sum of the cross entropies in nats over the counted positions of a batch."""
        smoothing = hyper["label_smoothing"] if self.label_smoothing != 0 else None
        (loss, metrics), carry = apply.sums(
            batch, lambda logits, part: weighted_losses(logits, part, smoothing)
        )
        return loss, metrics, carry
