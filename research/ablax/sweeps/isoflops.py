"""The best size for a budget: parabolas through the losses of runs of equal FLOPs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from ablax.sweeps.statistics import CONFIDENCE

REPLICATES = 1000
Values = Float[np.ndarray, " points"]


@dataclasses.dataclass(frozen=True)
class Valley:
    """Runs of one budget of FLOPs.

    Attributes:
      flops: the budget.
      parameters: where the parabola of loss over log N is lowest, or None.
      loss: its lowest value, or None.
      interval: of `parameters`, by drawing residuals anew, or None.
      why: why there is no such place, or None.
    """

    flops: float
    parameters: float | None = None
    loss: float | None = None
    interval: tuple[float, float] | None = None
    why: str | None = None


def valley(flops: float, parameters: Values, losses: Values, seed: int = 0) -> Valley:
    """Fits a parabola (Hoffmann et al. 2022, arXiv:2203.15556, section 3.2).

    An optimum at the smallest or largest size is none: the best size may lie beyond.
    """
    sizes = np.unique(parameters)
    if len(sizes) < 3:
        return Valley(flops, why=f"{len(sizes)} sizes: a parabola needs 3")
    x = np.log(parameters / sizes[0])
    fitted = np.polynomial.Polynomial.fit(x, losses, 2).convert()
    best = _lowest(fitted.coef)
    if best is None or not 0 < best < x.max():
        return Valley(
            flops, why="the best size is not among those trained; its optimum is at the edge"
        )
    found = Valley(flops, float(sizes[0] * np.exp(best)), float(fitted(best)))
    if len(x) < 5:
        return dataclasses.replace(found, why="too few runs for an interval")
    residuals = (losses - fitted(x)) * np.sqrt(len(x) / (len(x) - 3))
    rng = np.random.default_rng(seed)
    drawn = fitted(x)[:, None] + rng.choice(residuals, (len(x), REPLICATES))
    design = np.stack([np.ones_like(x), x, x**2], 1)
    coefficients = np.linalg.lstsq(design, drawn, rcond=None)[0]
    places = [place for row in coefficients.T if (place := _lowest(row)) is not None]
    if len(places) < REPLICATES * CONFIDENCE:
        return dataclasses.replace(found, why="the losses hardly depend on the size: no interval")
    low, high = np.quantile(places, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return dataclasses.replace(
        found, interval=(float(sizes[0] * np.exp(low)), float(sizes[0] * np.exp(high)))
    )


def _lowest(coefficients: np.ndarray) -> float | None:
    """Where a parabola a + b x + c x^2 is lowest; None if it has no lowest place."""
    _, b, c = (*coefficients, 0.0, 0.0)[:3]
    return float(-b / (2 * c)) if c > 0 else None


def exponent(valleys: Mapping[float, Valley]) -> tuple[float, tuple[float, float] | None] | None:
    """a of N_best proportional to C^a, and its t interval where three budgets have an optimum."""
    known = [(one.flops, one.parameters) for one in valleys.values() if one.parameters]
    if len(known) < 2:
        return None
    x, y = np.log(np.array(known, np.float64)).T
    line: Any = stats.linregress(x, y)
    if len(known) < 3:
        return float(line.slope), None
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(known) - 2) * line.stderr
    return float(line.slope), (float(line.slope - half), float(line.slope + half))
