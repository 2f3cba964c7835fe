"""Learning-rate schedules: each builds a function step -> factor in [0, 1] that multiplies the peak
learning rate.

Steps count from zero: the factor at step s scales the update that turns the state of step s into
that of s + 1. A warm-up of w steps gives (s + 1) / w at step s < w, so the first update is not
wasted and step w - 1 is at the peak. A decay reaches its final fraction at step `total_steps`, one
past the last update.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ablax.config import Duration, RequestError, cross_check, knob
from ablax.shapes import Array

Hyper = Mapping[str, Any]
Factor = Callable[[Any], Array]
ToSteps = Callable[[Duration], int]


@dataclasses.dataclass(frozen=True)
class ConstantConfig:
    """The peak learning rate, after a linear warm-up."""

    warmup: Duration = knob(Duration(0), "length of the linear warm-up")

    def build(self, total_steps: int, to_steps: ToSteps, hyper: Hyper) -> Factor:
        """step (int32, any shape) -> float32 factor of the same shape.

        Args:
          total_steps: number of updates of the whole run.
          to_steps: resolves a Duration to steps.
          hyper: the config's traced knobs as float32 scalars, possibly tracers.

        Raises:
          RequestError: if warm-up and decay do not fit into the run.
        """
        warmup = _fitting("warmup", to_steps(self.warmup), total_steps)
        return lambda step: _warmup(step, warmup)


@dataclasses.dataclass(frozen=True)
class LinearConfig:
    """Linear from the peak, after the warm-up, to a fraction of it (Devlin et al. 2019, appendix
    A.2).
    """

    warmup: Duration = knob(Duration("1%"), "length of the linear warm-up")
    final_fraction: float = knob(0.0, "learning rate at the end, over the peak", traced=True)

    def __post_init__(self):
        _check_fraction(self.final_fraction)

    def build(self, total_steps: int, to_steps: ToSteps, hyper: Hyper) -> Factor:
        """See `ConstantConfig.build`."""
        warmup = _fitting("warmup", to_steps(self.warmup), total_steps)

        def factor(step: Any) -> Array:
            shape = 1 - _progress(step, warmup, total_steps)
            return _warmup(step, warmup) * _towards(hyper["final_fraction"], shape)

        return factor


@dataclasses.dataclass(frozen=True)
class CosineConfig:
    """Half a cosine from the peak to a fraction of it (Loshchilov and Hutter 2017, equation 5; no
    restarts).
    """

    warmup: Duration = knob(Duration("1%"), "length of the linear warm-up")
    final_fraction: float = knob(0.1, "learning rate at the end, over the peak", traced=True)

    def __post_init__(self):
        _check_fraction(self.final_fraction)

    def build(self, total_steps: int, to_steps: ToSteps, hyper: Hyper) -> Factor:
        """See `ConstantConfig.build`."""
        warmup = _fitting("warmup", to_steps(self.warmup), total_steps)

        def factor(step: Any) -> Array:
            shape = _half_cosine(_progress(step, warmup, total_steps))
            return _warmup(step, warmup) * _towards(hyper["final_fraction"], shape)

        return factor


@dataclasses.dataclass(frozen=True)
class WSDConfig:
    """Warm-up, stable, decay: the peak until a decay at the end (Hu et al. 2024, section 4; Hägele
    et al. 2024).

    Before the decay starts, the schedule does not depend on how long the run is (give the warm-up
    in steps).
    """

    warmup: Duration = knob(Duration(100), "length of the linear warm-up")
    decay: Duration = knob(Duration("20%"), "length of the decay, which ends with the run")
    shape: Literal["linear", "cosine", "1-sqrt"] = knob("1-sqrt", "shape of the decay")
    final_fraction: float = knob(0.0, "learning rate at the end, over the peak", traced=True)

    def __post_init__(self):
        _check_fraction(self.final_fraction)

    def build(self, total_steps: int, to_steps: ToSteps, hyper: Hyper) -> Factor:
        """See `ConstantConfig.build`."""
        warmup = _fitting("warmup", to_steps(self.warmup), total_steps)
        decay = _fitting("decay", to_steps(self.decay), total_steps)
        if warmup + decay > total_steps:
            raise cross_check(
                "schedule.decay",
                f"{self.decay} ({decay} steps)",
                f"and a warm-up of {warmup} steps exceed the run's {total_steps}",
                "shorten one of them",
            )
        shapes = {
            "linear": lambda q: 1 - q,
            "cosine": _half_cosine,
            "1-sqrt": lambda q: 1 - jnp.sqrt(q),
        }

        def factor(step: Any) -> Array:
            shape = shapes[self.shape](_progress(step, total_steps - decay, total_steps))
            return _warmup(step, warmup) * _towards(hyper["final_fraction"], shape)

        return factor


@dataclasses.dataclass(frozen=True)
class InverseSqrtConfig:
    """Warm-up, then sqrt(warmup / (step + 1)) (Vaswani et al. 2017, equation 3, scaled to a peak of
    one).
    """

    warmup: Duration = knob(Duration(4000), "length of the linear warm-up, at least one step")

    def build(self, total_steps: int, to_steps: ToSteps, hyper: Hyper) -> Factor:
        """See `ConstantConfig.build`. The warm-up may be longer than the run."""
        warmup = max(to_steps(self.warmup), 1)

        def factor(step: Any) -> Array:
            decayed = jnp.sqrt(warmup / jnp.maximum(_float(step) + 1, warmup))
            return _warmup(step, warmup) * decayed

        return factor


SCHEDULES: dict[str, type] = {
    "constant": ConstantConfig,
    "linear": LinearConfig,
    "cosine": CosineConfig,
    "wsd": WSDConfig,
    "inverse_sqrt": InverseSqrtConfig,
}


def unchanged_until(step: int, old: Factor, new: Factor) -> bool:
    """Whether two built schedules agree, bit for bit, at every step before `step`: those that have
    been taken.
    """
    steps = jnp.arange(step, dtype=jnp.int32)
    before, after = (np.asarray(jax.jit(factor)(steps)) for factor in (old, new))
    return np.array_equal(before, after)


def _float(step: Any) -> Array:
    # Exact below 2^24 steps; beyond, rounding moves the factor by at most one part in 2^24.
    return jnp.asarray(step).astype(jnp.float32)


def _warmup(step: Any, steps: int) -> Array:
    return jnp.minimum((_float(step) + 1) / max(steps, 1), 1.0)


def _progress(step: Any, start: int, end: int) -> Array:
    """0 until `start`, then linear, 1 from `end` on."""
    return jnp.clip((_float(step) - start) / max(end - start, 1), 0.0, 1.0)


def _half_cosine(progress: Array) -> Array:
    return 0.5 * (1 + jnp.cos(jnp.pi * progress))


def _towards(final: Any, shape: Array) -> Array:
    """`final` + (1 - `final`) `shape`, exactly 1 where the shape is 1."""
    return 1 - (1 - final) * (1 - shape)


def _fitting(name: str, steps: int, total_steps: int) -> int:
    if steps > total_steps:
        remedy = f"shorten schedule.{name} or raise training.steps"
        raise cross_check(
            f"schedule.{name}", f"{steps} steps", f"exceeds the run's {total_steps}", remedy
        )
    return steps


def _check_fraction(value: float) -> None:
    if value < 0 or value > 1:
        raise RequestError(f"final_fraction={value} must lie between 0 and 1")
