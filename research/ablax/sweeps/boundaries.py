"""Boundaries for tests that are looked at again and again: exact for paired t tests over few seeds.

A boundary turns the t statistic of a look into a p that is valid whatever the looks before it showed, and into the
critical |t| of an interval that holds at all looks at once. Both assume that the paired differences of the seeds are
independent and normal, or more generally spherical, with mean 0 under the null hypothesis; their variance is unknown.
Of differences that are skewed to one side they promise as little as the t test does.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special
from scipy.interpolate import PchipInterpolator

from ablax.config import RequestError, suggest

Numbers = Float[np.ndarray, "..."]
SMALLEST = 1e-12
"""Chances under it are not spent, and p are not told apart below it."""
KINDS = ("obrien_fleming", "pocock")


@dataclasses.dataclass(frozen=True)
class Spending:
    """Looks at numbers of seeds that are settled beforehand, each of which may spend a part of the level.

    Lan and DeMets 1983; the share that a number of seeds has of the last one is its information. The critical values
    are those of t, from the exact joint distribution of the statistics, not of z. A look that is left out leaves its
    part unspent.

    Attributes:
      at: the numbers of seeds, each at least 2; after the last one the sweep is complete.
      kind: `pocock` spends early and late alike, so that large differences end an arm with few seeds;
        `obrien_fleming` keeps nearly all for the last looks, and costs nearly nothing there.
      level: chance of a claim, over all looks and arms, where nothing differs.
      futility: an arm stops when the chance that its remaining looks show a difference, were it alone, is smaller than
        this; None for never. Stopping so needs no correction, and costs power.
    """

    at: tuple[int, ...]
    kind: str = "obrien_fleming"
    level: float = 0.05
    futility: float | None = None

    def __post_init__(self) -> None:
        at = tuple(self.at)
        object.__setattr__(self, "at", at)  # a list cannot be hashed
        whole = all(isinstance(n, int) and n >= 2 for n in at)
        if not at or not whole or list(at) != sorted(set(at)):
            raise RequestError(
                f"Spending(at={at}) must be growing numbers of seeds, each at least 2, such as (3, 5, 8, 10)"
            )
        if self.kind not in KINDS:
            raise RequestError(
                f"Spending(kind={self.kind!r}) is none of {', '.join(KINDS)}{suggest(str(self.kind), KINDS)}"
            )
        _check_shares("Spending", self.level, self.futility)

    def looks(self, seeds: int) -> tuple[int, ...]:
        """The numbers of seeds at which a plan of so many seeds is looked at.

        Raises:
          RequestError: if the last look is not at the plan's last seed.
        """
        if self.at[-1] != seeds:
            raise RequestError(
                f"the plan has {seeds} seeds and its last look is at {self.at[-1]}; end Spending(at=...) with {seeds}"
            )
        return self.at

    def p(self, n: int, t: Any) -> Numbers:
        """The smallest level at which this look alone would claim a difference; the smallest over the looks so far is a
        p of all of them (Liu and Anderson 2008).

        Args:
          n: number of seeds, one of `at`.
          t: paired t statistics.
        """
        nominal, level = _column(self, n)
        known = nominal > 0
        tested = np.log(np.clip(_two_sided(n, t), SMALLEST, 1))
        # Levels of which this look may spend nothing are left out: no t is large enough for them.
        return np.exp(np.interp(tested, np.log(nominal[known]), np.log(level[known])))

    def critical(self, n: int, level: float) -> float:
        """The |t| at which a look at `n` seeds claims a difference; infinity where none is enough."""
        nominal, levels = _column(self, n)
        known = nominal > 0
        if level < levels[known][0]:
            return math.inf
        found = np.exp(np.interp(math.log(level), np.log(levels[known]), np.log(nominal[known])))
        sine2 = special.betaincinv((n - 1) / 2, 0.5, found)
        return float(math.sqrt((n - 1) * (1 - sine2) / sine2))


@dataclasses.dataclass(frozen=True)
class Anytime:
    """Looks after every seed, for as long as one likes: the p is one over the largest evidence so far.

    The evidence is the likelihood ratio of the t statistics for a normal mixture of effects against none, with the
    right Haar prior of the standard deviation: a martingale of the t statistics under the null hypothesis, which
    exceeds 1/level with at most that chance (Ville 1939; Wang and Ramdas 2024, section 4, arXiv:2310.03722; Lai 1976
    has a flat mixture). Being valid for ever costs power where the number of seeds is bounded: `Spending` has more.

    Attributes:
      first: seeds before the first look, at least 2.
      every: seeds from one look to the next.
      spread: standard deviation of the mixture, in standard deviations of the paired differences. Under 2.6 no three
        seeds are ever enough at a level of 5 %.
      level: chance of a claim, over all looks and arms, where nothing differs.
      futility: as in `Spending`, until the plan's last seed.
    """

    first: int = 3
    every: int = 1
    spread: float = 5.0
    level: float = 0.05
    futility: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("first", 2), ("every", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise RequestError(
                    f"Anytime({name}={value!r}) must be a whole number, at least {least}"
                )
        if not 0 < self.spread < math.inf:
            raise RequestError(
                f"Anytime(spread={self.spread!r}) must be a positive number of standard deviations"
            )
        _check_shares("Anytime", self.level, self.futility)

    def looks(self, seeds: int) -> tuple[int, ...]:
        """As `Spending.looks`; the plan's last seed always has one.

        Raises:
          RequestError: if the plan has fewer seeds than the first look needs.
        """
        if seeds < self.first:
            raise RequestError(
                f"the plan has {seeds} seeds and its first look is at {self.first}; give it more, or Anytime(first=...)"
            )
        return tuple(sorted({*range(self.first, seeds + 1, self.every), seeds}))

    def p(self, n: int, t: Any) -> Numbers:
        """As `Spending.p`."""
        shrink = 1 / (1 + n * self.spread**2)
        x = np.square(np.asarray(t, np.float64)) / (n - 1)
        evidence = 0.5 * math.log(shrink) + n / 2 * (np.log1p(x) - np.log1p(shrink * x))
        return np.exp(-np.maximum(evidence, 0.0))

    def critical(self, n: int, level: float) -> float:
        """As `Spending.critical`."""
        shrink = 1 / (1 + n * self.spread**2)
        ratio = (level * math.sqrt(shrink)) ** (-2 / n)
        return (
            math.sqrt((n - 1) * (ratio - 1) / (1 - shrink * ratio))
            if shrink * ratio < 1
            else math.inf
        )


Boundary = Spending | Anytime


def _check_shares(name: str, level: float, futility: float | None) -> None:
    if not 0 < level < 0.5:
        raise RequestError(f"{name}(level={level!r}) must lie between 0 and 0.5, such as 0.05")
    if futility is not None and not 0 < futility < 1:
        raise RequestError(f"{name}(futility={futility!r}) must lie between 0 and 1, or be None")


def _spent(kind: str, level: float, share: float) -> float:
    """What may be spent by a share of the information; both sides together (Lan and DeMets 1983)."""
    if kind == "pocock":
        return level * math.log1p((math.e - 1) * share)
    return 4 * special.ndtr(special.ndtri(level / 4) / math.sqrt(share))


def _two_sided(n: int, t: Any) -> Numbers:
    """p of the t test at n seeds as if it were the only one."""
    return 2 * special.stdtr(n - 1, -np.abs(np.asarray(t, np.float64)))


def _column(rule: Spending, n: int) -> tuple[Numbers, Numbers]:
    if n not in rule.at:
        raise RequestError(f"a look at {n} seeds was not declared; the plan has looks at {rule.at}")
    levels, nominal = _table(rule.at, rule.kind)
    return nominal[:, rule.at.index(n)], levels


@functools.lru_cache(maxsize=16)
def _table(at: tuple[int, ...], kind: str) -> tuple[Numbers, Numbers]:
    """Levels [I], and the p of a single t test under which each look claims a difference [I K]; 0 where none does."""
    coarse = np.concatenate([np.geomspace(1e-5, 0.1, 17), [0.2, 0.4, 0.6, 0.8, 0.95, 1 - 1e-6]])
    shares = np.array(at) / at[-1]
    exact = np.array(
        [_nominal(at, [float(_spent(kind, level, x)) for x in shares]) for level in coarse]
    )
    levels = np.geomspace(coarse[0], coarse[-1], 600)
    nominal = np.zeros((len(levels), len(at)))
    for look, column in enumerate(exact.T):
        known = column > 0
        curve = PchipInterpolator(np.log(coarse[known]), np.log(column[known]), extrapolate=False)
        nominal[:, look] = np.nan_to_num(np.exp(curve(np.log(levels))))
    return levels, nominal


def _nominal(at: Sequence[int], spent: Sequence[float]) -> list[float]:
    """The p of a single t test under which each look claims a difference, so that `spent` is spent by then.

    Under the null hypothesis the t statistics are a Markov chain backwards, whatever the variance: given the last one,
    the direction of the differences is uniform on a sphere's ring (cf. Armitage, McPherson and Rowe 1969, who go
    forwards with a known variance). The chance that no look before has claimed anything is carried from one number of
    seeds to the next as a function of p, of which the distribution is uniform.
    """
    p = np.unique(np.concatenate([np.geomspace(SMALLEST, 0.02, 160), np.linspace(0.02, 1, 140)]))
    silent, n, cut, gone, found = np.ones_like(p), at[0], 0.0, 0.0, []
    for look, target in zip(at, spent, strict=True):
        for n in range(n, look):  # noqa: B020
            silent, cut = _one_seed_more(n, p, silent, cut), 0.0
        n = look
        claimed = np.cumsum(np.concatenate([[silent[0] * p[0]], _trapezoids(p, silent)]))
        claimed = np.maximum(claimed, 1e-300)  # where a look before has claimed everything
        if target - gone > SMALLEST:
            cut = float(np.exp(np.interp(np.log(target - gone), np.log(claimed), np.log(p))))
            gone = target
        found.append(cut)
    return found


def _trapezoids(x: Numbers, y: Numbers) -> Numbers:
    return np.diff(x) * (y[1:] + y[:-1]) / 2


def _one_seed_more(n: int, p: Numbers, silent: Numbers, cut: float) -> Numbers:
    """P(no claim until n | p at n + 1) from P(no claim before n | p at n), where p under `cut` claim at n.

    A direction's component along (1, ..., 1) is the cosine that belongs to t; what is written with `sine2` is one minus
    its square.
    """
    sine2, cut2 = (special.betaincinv((n - 1) / 2, 0.5, x) for x in (p, cut))
    after2 = special.betaincinv(n / 2, 0.5, p)[:, None]
    total = np.sqrt((n + 1) * (1 - after2))
    middle, radius = total / (n + 1), np.sqrt(after2 * n / (n + 1))
    # The last difference lies in the ring; where n's |cosine| is under its cut is one interval of it.
    half = np.sqrt(np.maximum(n * (1 - cut2) * ((n + 1) * after2 - n * cut2), 0))
    ends = [(total + side * half) / (1 + n * (1 - cut2)) for side in (1, -1)]
    low, high = (np.arccos(np.clip((end - middle) / radius, -1, 1)) for end in ends)
    nodes, weights = special.roots_legendre(40)
    angle = low + (high - low) * (nodes + 1) / 2
    last = middle + radius * np.cos(angle)
    before2 = 1 - np.square(total - last) / (n * (1 - np.square(last)))
    values = np.interp(np.log(np.maximum(before2, 1e-300)), np.log(sine2), silent)
    density = np.sin(angle) ** (n - 2) / special.beta((n - 1) / 2, 0.5)
    return ((high - low) / 2 * weights * density * values).sum(axis=1)
