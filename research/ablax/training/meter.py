"""The meter: sums of steps on the host, in float64, until a record is written."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ablax.objectives.sums import Sums
from ablax.training.speed import Speed

CLOCKED = ("tokens_per_second", "tokens_per_second_per_device", "model_flops_per_second", "mfu")
"""What a record says of the machine's speed: it differs between two runs that are the same."""


class Meter:
    """Adds up what the steps report between two records.

    Args:
      speed: what one step is.
    """

    def __init__(self, speed: Speed):
        self.speed = speed
        self.sums: dict[str, list[float]] = {}
        self.last: dict[str, float] = {}
        self.steps = self.skipped = 0
        self.seconds = 0.0

    def add(self, metrics: Mapping[str, Any] | None, seconds: float) -> None:
        """Fetches the metrics of a step that is done; None of a step that was left out, which the records count."""
        if metrics is None:
            self.skipped += 1
            return
        for name, value in metrics.items():
            if isinstance(value, Sums):
                total = self.sums.setdefault(name, [0.0, 0.0])
                total[0] += float(np.asarray(value.total))
                total[1] += float(np.asarray(value.count))
            elif name != "refused":
                self.last[name] = float(np.asarray(value))
        self.steps += 1
        self.seconds += seconds

    def take(self, step: int) -> dict[str, Any]:
        """The record of the steps since the last one; the meter is empty afterwards."""
        means = {name: total / max(count, 1) for name, (total, count) in self.sums.items()}
        clocked = self.speed.measures(self.steps, self.seconds)
        record = {"step": step, "split": "train", **means, **self.last, **clocked}
        if self.skipped:
            record["skipped"] = self.skipped
        self.__init__(self.speed)
        return record

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep so that the next record is the same after a resume."""
        names = ("sums", "last", "steps", "skipped", "seconds")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state."""
        self.sums = {name: list(total) for name, total in state["sums"].items()}
        self.last = dict(state["last"])
        self.steps, self.skipped, self.seconds = (
            state[name] for name in ("steps", "skipped", "seconds")
        )
