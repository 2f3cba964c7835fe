"""A plan is data: a list of flat overrides, one for every cell of a sweep, built from pure functions.

    def get_sweep():
        arms = chain(named("dense"), named("banded", {"model.attention_pattern": (64,)}))
        return product(arms, seeds(3))

An override is a dotted path and a value. `arm` is no knob: it names the arm for people and folders. `seed` tells the
cells of one arm apart. The first arm is the baseline.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablax.config import RequestError

Overrides = dict[str, Any]
ARM = "arm"
SEED = "seed"


def grid(
    axes: Mapping[str, Iterable[Any]] | None = None, /, **more: Iterable[Any]
) -> list[Overrides]:
    """Every combination of the axes' values; the last axis runs fastest. Axes without a dot may be keywords.

    >>> grid({"model.num_layers": [2, 4], "model.dropout": [0.0]})
    [{'model.num_layers': 2, 'model.dropout': 0.0}, {'model.num_layers': 4, 'model.dropout': 0.0}]
    """
    axes = {**(axes or {}), **more}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def seeds(count_or_seeds: int | Iterable[int]) -> list[Overrides]:
    """The seeds 0 ... n-1, or those given.

    >>> seeds(2)
    [{'seed': 0}, {'seed': 1}]
    """
    chosen = range(count_or_seeds) if isinstance(count_or_seeds, int) else count_or_seeds
    return [{SEED: seed} for seed in chosen]


def named(name: str, overrides: Mapping[str, Any] | None = None) -> list[Overrides]:
    """One arm with a name.

    >>> named("wide", {"model.width": 512})
    [{'arm': 'wide', 'model.width': 512}]
    """
    return [{ARM: name, **(overrides or {})}]


def chain(*plans: Iterable[Mapping[str, Any]]) -> list[Overrides]:
    """One plan after another."""
    return [dict(overrides) for plan in plans for overrides in plan]


def product(*plans: Iterable[Mapping[str, Any]]) -> list[Overrides]:
    """Every combination of the plans' cells; the last plan runs fastest. Names of arms are joined.

    Raises:
      RequestError: if two plans set the same knob.
    """
    return [_merged(cells) for cells in itertools.product(*map(list, plans))]


def _merged(cells: Sequence[Mapping[str, Any]]) -> Overrides:
    result: Overrides = {}
    for overrides in cells:
        for path, value in overrides.items():
            if path == ARM and ARM in result:
                value = f"{result[ARM]},{value}"
            elif path in result:
                raise RequestError(f"two plans of one product set {path}; set it in one of them")
            result[path] = value
    return result
