"""Random search: draws of knobs, each by itself."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ablax.config import RequestError


def random(n: int, distributions: Mapping[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """`n` draws of every knob by itself (random search; Bergstra and Bengio 2012).

    A knob's draws depend on the seed and its path alone: one more knob, or one more draw, changes no other.

    >>> random(2, {"model.activation": ["relu", "gelu"]}, seed=1)
    [{'model.activation': 'relu'}, {'model.activation': 'relu'}]

    Args:
      distributions: path -> a frozen distribution of `scipy.stats` (`loguniform(1e-4, 1e-2)`, `randint(1, 9)`), or a
        list of values that are drawn with equal chances.

    Raises:
      RequestError: if a distribution is neither.
    """
    drawn = {path: _draws(n, path, one, seed) for path, one in distributions.items()}
    return [{path: values[i] for path, values in drawn.items()} for i in range(n)]


def _draws(n: int, path: str, distribution: Any, seed: int) -> list[Any]:
    generator = np.random.default_rng((seed, zlib.crc32(path.encode())))
    if isinstance(distribution, list | tuple):
        return [distribution[generator.integers(len(distribution))] for _ in range(n)]
    if not hasattr(distribution, "rvs"):
        raise RequestError(
            f"random: {path}={distribution!r} is no distribution; give one of scipy.stats or a list of values"
        )
    values = (distribution.rvs(random_state=generator) for _ in range(n))
    return [value.item() if isinstance(value, np.generic) else value for value in values]
