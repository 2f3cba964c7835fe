"""The guard inside the step: an update that would poison the weights is not applied."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ablax.config import RequestError, knob
from ablax.objectives.sums import Sums
from ablax.shapes import Array, Float, Int

if TYPE_CHECKING:
    from ablax.training.state import TrainState

ACCEPTED, NOT_FINITE, SPIKE = 0, 1, 2
# Log losses that hardly vary must not make a spike of a per cent.
SMALLEST_DEVIATION = 0.01


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """What happens when loss, gradient or rate are not finite, or the loss jumps. Such a step is never applied.

    It is repeated from the state before it, and said to be deterministic or transient. Spikes are not looked for by
    default: PaLM (Chowdhery et al. 2022, section 5.1) and OPT (Zhang et al. 2022, section 2.5) went back by hand and
    give no threshold.
    """

    policy: Literal["stop", "skip", "rewind"] = knob(
        "stop",
        "stop: end the run; skip: go on without the step; rewind: go back to the newest good checkpoint and leave out "
        "the batches since then and `skip_batches` more.",
    )
    spike: float = knob(
        0.0,
        "Standard deviations above its running mean at which a log loss is a spike, 6 for example; 0: none is.",
        traced=True,
    )
    window: int = knob(
        100, "Steps over which that mean and deviation are taken; there is no spike before."
    )
    skip_batches: int = knob(
        200, "rewind: batches left out behind the refused one (PaLM: 200 to 500 in all)."
    )
    patience: int = knob(
        5, "Refused steps in a row (skip), or rewinds of a run, after which it stops."
    )

    def __post_init__(self):
        if self.spike < 0:
            raise RequestError(f"spike={self.spike} must be 0 or more standard deviations")
        if self.window < 2:
            raise RequestError(f"window={self.window} must be at least 2 steps")
        if min(self.skip_batches, self.patience) < 0:
            raise RequestError("skip_batches and patience must be 0 or more")


@flax.struct.dataclass
class GuardState:
    """Whether a step was refused, and what is known of the loss.

    Attributes:
      refused: int32 []; once it is not ACCEPTED, later steps change nothing, so that the host, which learns of it one
        step late, finds the state from before the refused step.
      seen: int32 [] losses in the statistics.
      mean, variance: float32 [] of the log loss.
    """

    refused: Int[Array, ""]
    seen: Int[Array, ""]
    mean: Float[Array, ""]
    variance: Float[Array, ""]

    @classmethod
    def fresh(cls) -> "GuardState":
        """Nothing refused, nothing seen. Each leaf has its own buffer, because states are donated."""
        counts = (jnp.zeros((), jnp.int32) for _ in range(2))
        return cls(*counts, *(jnp.zeros((), jnp.float32) for _ in range(2)))


def judge(
    config: GuardConfig,
    before: GuardState,
    hyper: Mapping[str, Any],
    loss: Sums,
    norm: Array,
    rate: Array,
) -> GuardState:
    """The verdict on a step, from sums over the whole batch: every device comes to the same one.

    Mean and variance are exponentially weighted over `window` steps (Finch 2009, section 9), plain ones until then;
    refused losses do not enter, which keeps them robust.

    The parameters after the step are not looked at, for that would double the state in memory. An optimizer that spoils
    them all the same (by an overflow, say) is found out by the next step, evaluation or save; nothing of it is saved.

    Args:
      hyper: the traced knobs.
      loss: of the batch; its mean is judged.
      norm: of the gradient, before clipping.
      rate: the learning rate.
    """
    finite = jnp.isfinite(jnp.stack([loss.total, norm, rate])).all()
    refused = jnp.where(finite, ACCEPTED, NOT_FINITE)
    mean, variance, seen = before.mean, before.variance, before.seen
    if config.spike != 0:
        deviations = hyper["training"]["guard"]["spike"]
        level = jnp.log(jnp.maximum(loss.total / jnp.maximum(loss.count, 1), 1e-30))
        bound = mean + deviations * jnp.maximum(jnp.sqrt(variance), SMALLEST_DEVIATION)
        spiking = (seen >= config.window) & (level > bound) & (refused == ACCEPTED)
        refused = jnp.where(spiking, SPIKE, refused)
        weight = 1 / jnp.minimum(seen + 1, config.window).astype(jnp.float32)
        change = level - mean
        mean = mean + weight * change
        variance = (1 - weight) * (variance + weight * change**2)
        seen = seen + 1
    refused = jnp.where(before.refused == ACCEPTED, refused, before.refused).astype(jnp.int32)
    after = GuardState(refused, seen, mean, variance)
    kept = jax.tree.map(lambda new, old: jnp.where(refused == ACCEPTED, new, old), after, before)
    return dataclasses.replace(kept, refused=refused)


def released(state: "TrainState", advance: bool = False) -> "TrainState":
    """A frozen state that may take steps again; with `advance` it counts the refused step as done."""
    guard = dataclasses.replace(state.guard, refused=jnp.zeros_like(state.guard.refused))
    return dataclasses.replace(state, guard=guard, step=state.step + 1 if advance else state.step)


def why_refused(metrics: Any) -> str | None:
    """Why a step was refused, from its metrics, which are waited for; None if it was not."""
    refused = int(np.asarray(metrics["refused"]))
    if refused == ACCEPTED:
        return None
    loss = float(metrics["loss"].total) / max(float(metrics["loss"].count), 1)
    if refused == SPIKE:
        return f"loss {loss:.4g} is a spike"
    norm = float(metrics["gradient_norm"])
    if loss - loss == norm - norm == 0:
        return f"learning_rate is {float(metrics['learning_rate'])}"
    return f"loss is {loss}" if loss - loss != 0 else f"gradient_norm is {norm}"
