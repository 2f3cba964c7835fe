"""Regular fractions of two-level factorial designs (Box, Hunter and Hunter 2005, chapter 6)."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from ablax.config import RequestError

MOST_RUNS = 4096
MOST_FACTORS = 10
"""Beyond it the search for the best fraction takes minutes; so many parts are rather left out one by one."""


def fraction_of(factors: int, fraction: float) -> Bool[np.ndarray, "runs factors"]:
    """The runs of a fraction of highest resolution; whether each factor is on.

    Runs with fewer factors come before those with more; the first has none.

    Raises:
      RequestError: if the fraction is no power of 1/2, or confounds two main effects.
    """
    if factors < 1:
        raise RequestError("a factorial plan needs at least one part")
    halvings = -math.log2(fraction) if 0 < fraction <= 1 else -1.0
    if halvings < 0 or halvings != int(halvings) or halvings >= factors:
        raise RequestError(
            f"fraction={fraction:g} of {factors} parts is none; give 1, 1/2, 1/4, ... of at least two runs"
        )
    if factors - halvings > math.log2(MOST_RUNS):
        raise RequestError(
            f"a factorial plan of {factors} parts has 2^{factors - int(halvings)} runs; use a fraction or leave_one_out"
        )
    if halvings and factors > MOST_FACTORS:
        raise RequestError(
            f"a fraction of {factors} parts is not searched for; {MOST_FACTORS} are the most, or use leave_one_out"
        )
    words = best_words(factors, int(halvings))
    if words is None:
        raise RequestError(
            f"fraction={fraction:g} of {factors} parts confounds two main effects; take twice as many runs"
        )
    runs = np.array(list(itertools.product((False, True), repeat=factors)))
    for word in words:
        # The run without any factor is in: an even number of the word's factors is on.
        runs = runs[runs[:, list(word)].sum(axis=1) % 2 == 0]
    order = sorted(range(len(runs)), key=lambda i: (runs[i].sum(), *(~runs[i]).tolist()))
    return runs[order]


def best_words(factors: int, halvings: int) -> Sequence[tuple[int, ...]] | None:
    """Defining words, as indices of factors, whose products are as long as they can be; None if one has two factors.

    Each word makes one factor, from the last on, the product of others. Among words of the same shortest product those
    with the fewest of them are taken (minimum aberration; Fries and Hunter 1980).
    """
    if halvings == 0:
        return ()
    base = factors - halvings
    # A set of factors is a number with their bits.
    products = [
        sum(1 << i for i in chosen)
        for size in range(base, 1, -1)
        for chosen in itertools.combinations(range(base), size)
    ]
    best: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    for chosen in itertools.combinations(products, halvings):
        generators = [word | 1 << (base + i) for i, word in enumerate(chosen)]
        lengths = [0] * (factors + 1)
        for picks in range(1, 2**halvings):
            word = 0
            for i, generator in enumerate(generators):
                if picks >> i & 1:
                    word ^= generator
            lengths[word.bit_count()] += 1
        if not any(lengths[:3]) and (best is None or tuple(lengths) < best[0]):
            best = tuple(lengths), tuple(generators)
    if best is None:
        return None
    return [tuple(i for i in range(factors) if word >> i & 1) for word in best[1]]
