"""The meter: sums of steps on the host, in float64, until a record is written."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ablax.objectives.sums import Sums
from ablax.run import RunFailed


class NonFinite(RunFailed):
    """A loss, a gradient or a parameter became NaN or infinite."""


def finite(params: Any) -> bool:
    """Whether every parameter is a number: an optimizer can overflow where loss and gradient did not."""
    return bool(_finite(params))


@jax.jit
def _finite(params: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


class Meter:
    """Adds up what the steps report between two records.

    Args:
      tokens_per_step: positions of a global batch.
    """

    def __init__(self, tokens_per_step: int):
        self.tokens_per_step = tokens_per_step
        self.sums: dict[str, list[float]] = {}
        self.last: dict[str, float] = {}
        self.steps = 0
        self.seconds = 0.0

    def add(self, metrics: Mapping[str, Any], seconds: float) -> None:
        """One step's metrics, already on the host.

        Raises:
          NonFinite: if the loss or the norm of the gradient is not finite; nothing is added then.
        """
        for name in ("loss", "gradient_norm"):
            value = metrics[name].total if isinstance(metrics[name], Sums) else metrics[name]
            if not math.isfinite(value):
                raise NonFinite(f"{name} is {float(value)}")
        for name, value in metrics.items():
            if isinstance(value, Sums):
                total = self.sums.setdefault(name, [0.0, 0.0])
                total[0] += float(value.total)
                total[1] += float(value.count)
            else:
                self.last[name] = float(value)
        self.steps += 1
        self.seconds += seconds

    def take(self, step: int) -> dict[str, Any]:
        """The record of the steps since the last one; the meter is empty afterwards."""
        means = {name: total / max(count, 1) for name, (total, count) in self.sums.items()}
        speed = self.steps * self.tokens_per_step / max(self.seconds, 1e-9)
        record = {"step": step, "split": "train", **means, **self.last, "tokens_per_second": speed}
        self.__init__(self.tokens_per_step)
        return record

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep so that the next record is the same after a resume."""
        return {"sums": self.sums, "last": self.last, "steps": self.steps, "seconds": self.seconds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state."""
        self.sums = {name: list(total) for name, total in state["sums"].items()}
        self.last = dict(state["last"])
        self.steps, self.seconds = state["steps"], state["seconds"]
