"""Linear classifiers of a model's states, in closed form from sums over tokens: nothing is descended."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float64, Int64

PENALTIES = 10.0 ** np.arange(-8, 3)
"""Of ridge regression, in units of the mean variance of a state's components."""

Linear = tuple[np.ndarray, np.ndarray]
"""Weights float64 [D C] and offsets [C] of scores, of which the largest is the answer."""


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Sums over tokens: all that closed forms need of their states x and labels.

    Attributes:
      x: sum of x, [D].
      xx: sum of x x', [D D].
      xy: sum of x for each label, [D C].
      y: tokens of each label, [C].
    """

    x: Float64[np.ndarray, "D"]
    xx: Float64[np.ndarray, "D D"]
    xy: Float64[np.ndarray, "D C"]
    y: Float64[np.ndarray, "C"]

    @classmethod
    def of(cls, states: Float64[np.ndarray, "n D"], labels: np.ndarray, classes: int) -> "Moments":
        """The sums over tokens with these states and labels [n], below `classes`."""
        one_hot = np.eye(classes)[labels]
        return cls(states.sum(0), states.T @ states, states.T @ one_hot, one_hot.sum(0))

    def __add__(self, other: "Moments") -> "Moments":
        names = [field.name for field in dataclasses.fields(self)]
        return Moments(*(getattr(self, name) + getattr(other, name) for name in names))


def ridge(fit: Moments, held: Moments) -> Linear:
    """Ridge regression onto one-hot labels; offsets are free.

    The penalty is that of `PENALTIES` which, fitted to `fit`, has the least squared error on `held`; the result is
    fitted to both.
    """
    errors = [_error(linear, held) for linear in _solve(fit, PENALTIES)]
    return next(_solve(fit + held, PENALTIES[np.argmin(errors) :]))


def _solve(moments: Moments, penalties: Iterable[float]) -> Iterator[Linear]:
    count = moments.y.sum()
    x, y = moments.x / count, moments.y / count
    values, vectors = np.linalg.eigh(moments.xx - count * np.outer(x, x))
    values = np.maximum(values, 0)
    rotated = vectors.T @ (moments.xy - count * np.outer(x, y))
    size = values.mean() or 1.0
    for penalty in penalties:
        weights = vectors @ (rotated / (values + penalty * size)[:, None])
        yield weights, y - x @ weights


def _error(linear: Linear, held: Moments) -> float:
    """The sum of squared errors, but for what no fit changes."""
    weights, offsets = linear
    shift = offsets @ (held.y.sum() * offsets + 2 * weights.T @ held.x - 2 * held.y)
    return float(np.sum(weights * (held.xx @ weights - 2 * held.xy)) + shift)


def centroids(moments: Moments) -> Linear:
    """The class whose mean state is the nearest; one without tokens never is."""
    means = moments.xy / np.maximum(moments.y, 1)
    return means, np.where(moments.y > 0, -np.sum(means**2, axis=0) / 2, -np.inf)


def answers(states: Float64[np.ndarray, "n D"], linear: Linear) -> Int64[np.ndarray, "n"]:
    """The class with the largest score."""
    return (states @ linear[0] + linear[1]).argmax(axis=1)
