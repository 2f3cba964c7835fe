"""Scaling of rotary positions: how a model that was trained on short texts turns the heads of longer ones."""

import dataclasses
import math

import jax.numpy as jnp

from ablax.config import RequestError, knob
from ablax.shapes import Array, Float

Scaled = tuple[Float[Array, "R"], float]
"""Radians per position of R pairs, and the factor on their cosines and sines."""


@dataclasses.dataclass(frozen=True)
class NoScaling:
    """Pairs are turned as they were in training."""

    def build(self, frequencies: Float[Array, "R"], base: float) -> Scaled:
        """What becomes of the frequencies base^(-i / R), i < R."""
        return frequencies, 1.0


@dataclasses.dataclass(frozen=True)
class LinearScaling(NoScaling):
    """Positions are divided by a factor (arXiv:2306.15595)."""

    factor: float = knob(2.0, "how many times as long texts become")

    def __post_init__(self):
        _check(self, "factor")

    def build(self, frequencies: Float[Array, "R"], base: float) -> Scaled:
        """See `NoScaling.build`."""
        return frequencies / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class Llama3Scaling(NoScaling):
    """Slow pairs are divided by a factor, fast ones stay, those between are mixed (Llama 3.1, arXiv:2407.21783)."""

    factor: float = knob(8.0, "how many times as long texts become")
    low_frequency_factor: float = knob(
        1.0, "pairs that turn less often than this within `original_length` are divided"
    )
    high_frequency_factor: float = knob(
        4.0, "pairs that turn more often than this within `original_length` stay"
    )
    original_length: int = knob(8192, "tokens of the texts in training")

    def __post_init__(self):
        _check(self, "factor", "low_frequency_factor", "original_length")
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise RequestError(
                f"positions.scaling.high_frequency_factor={self.high_frequency_factor} must be above "
                f"low_frequency_factor={self.low_frequency_factor}"
            )

    def build(self, frequencies: Float[Array, "R"], base: float) -> Scaled:
        """See `NoScaling.build`."""
        low, high = self.low_frequency_factor, self.high_frequency_factor
        turns = self.original_length * frequencies / (2 * math.pi)
        kept = jnp.clip((turns - low) / (high - low), 0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class YarnScaling(NoScaling):
    """As `llama3`, mixed evenly over the numbers of pairs, and logits grow a little (arXiv:2309.00071)."""

    factor: float = knob(4.0, "how many times as long texts become")
    beta_fast: float = knob(
        32.0, "pairs that turn more often than this within `original_length` stay"
    )
    beta_slow: float = knob(
        1.0, "pairs that turn less often than this within `original_length` are divided"
    )
    attention_factor: float | None = knob(
        None, "factor on queries and keys; none = 0.1 ln(factor) + 1 (section 3.4)"
    )
    original_length: int = knob(4096, "tokens of the texts in training")
    truncate: bool = knob(True, "whether mixing begins and ends at whole pairs")

    def __post_init__(self):
        _check(self, "factor", "beta_slow", "original_length")
        if self.beta_fast <= self.beta_slow:
            raise RequestError(
                f"positions.scaling.beta_fast={self.beta_fast} must be above beta_slow={self.beta_slow}"
            )
        if self.attention_factor is not None:
            _check(self, "attention_factor")

    def build(self, frequencies: Float[Array, "R"], base: float) -> Scaled:
        """See `NoScaling.build`."""
        pairs = frequencies.shape[0]

        def pair_of(turns: float) -> float:
            return pairs * math.log(self.original_length / (2 * math.pi * turns)) / math.log(base)

        first, last = pair_of(self.beta_fast), pair_of(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        numbers = jnp.arange(pairs, dtype=jnp.float32)
        divided = jnp.clip((numbers - first) / ((last - first) or 0.001), 0, 1)
        scaled = divided * frequencies / self.factor + (1 - divided) * frequencies
        return scaled, self.attention_factor or max(0.1 * math.log(self.factor) + 1, 1.0)


def _check(scaling: NoScaling, *names: str) -> None:
    for name in names:
        if getattr(scaling, name) <= 0:
            raise RequestError(f"positions.scaling.{name}={getattr(scaling, name)} must be above 0")


SCALINGS = {
    "none": NoScaling,
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
}
