"""The knobs of training itself."""

import dataclasses

from ablax.config import Duration, RequestError, knob
from ablax.training.guard import GuardConfig
from ablax.training.masks import DecayConfig


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long, how large, and how gradients become updates."""

    steps: Duration = knob(Duration(1000), "Length of the run: steps, epochs or tokens.")
    batch_size: int = knob(32, "Rows of a global batch, B.")
    accumulation: int = knob(
        1, "Micro-batches per step, at an equal global batch.", mark="execution"
    )
    clip_norm: float | None = knob(1.0, "Largest global norm of a gradient, or none.")
    decay: DecayConfig = knob(DecayConfig(), "Which parameters weight decay acts on.")
    ema_decay: float | None = knob(
        None, "Decay per step of the average of the parameters used in evaluation, or none."
    )
    guard: GuardConfig = knob(GuardConfig(), "What happens when a loss is not finite, or jumps.")
    loss_chunk: int | None = knob(
        None,
        "Positions of a row whose logits exist at once, computed again in the backward pass; none = all.",
        mark="execution",
    )

    def __post_init__(self):
        if self.batch_size < 1:
            raise RequestError(f"batch_size={self.batch_size} must be at least 1 row")
        if self.steps.unit == "%":
            raise RequestError(
                f"steps={self.steps} cannot be a share of itself; write steps, epochs or tokens"
            )
        if self.accumulation < 1:
            raise RequestError(f"accumulation={self.accumulation} must be at least 1")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise RequestError(
                f"clip_norm={self.clip_norm} must be positive; write none for no clipping"
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise RequestError(f"ema_decay={self.ema_decay} must lie in [0, 1)")
        if self.loss_chunk is not None and self.loss_chunk < 1:
            raise RequestError(f"loss_chunk={self.loss_chunk} must be at least 1 position, or none")
