"""Which checkpoints are kept: the newest, and the best of those that are durable."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orbax.checkpoint import checkpoint_managers


class Keep(checkpoint_managers.PreservationPolicy):
    """Keeps the newest `count` checkpoints and the best of those that are durable already."""

    def __init__(self, count: int, best_step: Callable[[], int | None]):
        self._count, self._best_step = count, best_step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        kept = {info.step for info in checkpoints[-self._count :]} | {self._best_step()}
        return [info.step in kept for info in checkpoints]


def best_of(scores: Mapping[int, float]) -> int | None:
    """The step with the smallest score, the newest of equals; None if none is finite."""
    finite = [(value, -step) for step, value in scores.items() if math.isfinite(value)]
    return -min(finite)[1] if finite else None
