"""The loss of a model as a law of its size and its data, L(N, D) = E + A / N^alpha + B / D^beta."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import optimize

from ablax.config import RequestError

DELTA = 1e-3
"""Residuals of the logarithm beyond which Huber's loss is linear (arXiv:2203.15556, section 3.3)."""
FARTHEST = 4.0
"""Beyond so many times the largest size, data or compute nothing is predicted."""
EXPONENTS = (0.1, 0.3, 0.6, 1.0)
BEST = 4
"""The grid of starts, and how many of its best are tried."""
BOUNDS = [(None, None), (0.01, 3.0), (None, None), (0.01, 3.0), (None, None)]
REPLICATES = 200
Values = Float[np.ndarray, " points"]


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted law. N counts parameters, D tokens; `largest` are the largest N, D and N x D that were seen."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    largest: tuple[float, float, float]

    def loss(self, parameters: float, tokens: float) -> float:
        """The predicted loss.

        Raises:
          RequestError: beyond `FARTHEST` times what was seen.
        """
        asked = (parameters, tokens, parameters * tokens)
        for name, value, most in zip(("N", "D", "N x D"), asked, self.largest, strict=True):
            if value > FARTHEST * most * (1 + 1e-9):
                raise RequestError(
                    f"{name}={value:.3g} is {value / most:.3g} times the largest that was trained, {most:.3g}; beyond "
                    f"{FARTHEST:g} times nothing is predicted; train larger arms"
                )
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta


def fit_law(parameters: Values, tokens: Values, losses: Values) -> Law:
    """Huber's loss on log L by L-BFGS from a grid of starts (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3).

    The sum is divided by delta^2 and the solver's tolerance is tight: with the scale as published it stops early
    (Besiroglu et al. 2024, arXiv:2404.10102).

    Raises:
      RequestError: if fewer than 6 different (N, D), 3 sizes or 2 ratios D / N were seen, or a loss is not positive.
    """
    reason = why_not(parameters, tokens, losses)
    if reason:
        raise RequestError(reason)
    n, d, target = np.log(parameters), np.log(tokens), np.log(losses)
    means = n.mean(), d.mean()
    centred = n - means[0], d - means[1]
    starts = sorted(
        _starts(*centred, losses), key=lambda start: _objective(start, *centred, target)[0]
    )
    return _best(starts[:BEST], (n, d, target), means)


def why_not(parameters: Values, tokens: Values, losses: Values) -> str | None:
    """Why no law can be fitted to these, or None."""
    if not (np.isfinite(losses).all() and (losses > 0).all()):
        return "a law needs losses that are positive and finite"
    places = set(zip(parameters.tolist(), tokens.tolist(), strict=True))
    ratios = np.unique(np.round(np.log(tokens / parameters), 1))
    if len(ratios) < 2:
        return "tokens grow with size in one ratio, so what does what cannot be told; give several ratios"
    if len(places) < 6 or len(np.unique(parameters)) < 3:
        return f"a law of 5 numbers needs 3 sizes and 6 pairs (N, D); there are {len(places)} pairs"
    return None


def bootstrap(
    law: Law, parameters: Values, tokens: Values, losses: Values, seed: int = 0
) -> Sequence[Law]:
    """Laws fitted to the law's predictions with its residuals drawn anew, widened for the 5 fitted numbers."""
    n, d = np.log(parameters), np.log(tokens)
    means = n.mean(), d.mean()
    start = _centred(law, means)
    fitted = _predict(start, n - means[0], d - means[1])[0]
    residuals = np.log(losses) - fitted
    residuals = (residuals - residuals.mean()) * np.sqrt(len(n) / max(len(n) - 5, 1))
    rng = np.random.default_rng(seed)
    return [
        _best([start], (n, d, fitted + rng.choice(residuals, len(n))), means)
        for _ in range(REPLICATES)
    ]


def _best(starts: Sequence[np.ndarray], data: tuple[Values, Values, Values], means: tuple) -> Law:
    n, d, target = data
    centred = n - means[0], d - means[1]
    found = [
        optimize.minimize(
            _objective, start, (*centred, target), "L-BFGS-B", jac=True, bounds=BOUNDS,
            options={"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-8},
        )
        for start in starts
    ]  # fmt: skip
    a, alpha, b, beta, e = min(found, key=lambda one: one.fun).x
    return Law(
        E=float(np.exp(e)),
        A=float(np.exp(a + alpha * means[0])),
        alpha=float(alpha),
        B=float(np.exp(b + beta * means[1])),
        beta=float(beta),
        largest=(float(np.exp(n.max())), float(np.exp(d.max())), float(np.exp((n + d).max()))),
    )


def _centred(law: Law, means: tuple) -> np.ndarray:
    """The solver's numbers: logarithms at the mean log N and log D, where they depend little on each other."""
    a, b = np.log(law.A) - law.alpha * means[0], np.log(law.B) - law.beta * means[1]
    return np.array([a, law.alpha, b, law.beta, np.log(law.E)])


def _starts(n: Values, d: Values, losses: Values) -> list[np.ndarray]:
    """For exponents of a grid the best E, A and B, which are then linear and not negative."""
    found = []
    for alpha in EXPONENTS:
        for beta in EXPONENTS:
            terms = np.stack([np.ones_like(n), np.exp(-alpha * n), np.exp(-beta * d)], 1)
            e, a, b = np.maximum(optimize.nnls(terms, losses)[0], 1e-4 * losses.min())
            found.append(np.array([np.log(a), alpha, np.log(b), beta, np.log(e)]))
    return found


def _predict(theta: np.ndarray, n: Values, d: Values) -> tuple[np.ndarray, np.ndarray]:
    """log L [points], and its derivatives [points 5]."""
    a, alpha, b, beta, e = theta
    terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
    top = terms.max(axis=0)
    weights = np.exp(terms - top)
    total = weights.sum(axis=0)
    first, second, third = weights / total
    return top + np.log(total), np.stack([first, -first * n, second, -second * d, third], 1)


def _objective(theta: np.ndarray, n: Values, d: Values, target: Values) -> tuple[float, np.ndarray]:
    predicted, slopes = _predict(theta, n, d)
    residuals = (predicted - target) / DELTA
    small = np.abs(residuals) <= 1
    loss = np.where(small, residuals**2 / 2, np.abs(residuals) - 0.5).sum()
    return float(loss), (np.clip(residuals, -1, 1) / DELTA) @ slopes
