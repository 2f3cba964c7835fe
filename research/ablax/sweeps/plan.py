"""A plan is data: a list of flat overrides, one for every cell of a sweep, built from pure functions.

    def get_sweep():
        arms = chain(named("dense"), named("banded", {"model.attention_pattern": (64,)}))
        return product(arms, seeds(3))

An override is a dotted path and a value. `arm` is no knob: it names the arm for people and folders. `seed` tells the
cells of one arm apart, and `repeat` those of one arm and seed. The first arm is the baseline, unless a `Plan` says so:

    def get_sweep():
        return Plan(product(arms, seeds(3)), metric="nats_per_token", baseline="dense")

A toggle is a part of a model or a recipe that is there or not: the overrides that put it in, and those that take it
out.

    PARTS = {"qk_norm": ({"model.qk_norm": True}, {"model.qk_norm": False})}
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablax.config import RequestError
from ablax.sweeps.boundaries import Anytime as Anytime
from ablax.sweeps.boundaries import Boundary
from ablax.sweeps.boundaries import Spending as Spending
from ablax.sweeps.branch import branch as branch
from ablax.sweeps.draws import random as random
from ablax.sweeps.fractions import fraction_of
from ablax.sweeps.halving import Halving as Halving
from ablax.sweeps.keys import ARM as ARM
from ablax.sweeps.keys import REPEAT as REPEAT
from ablax.sweeps.keys import SEED as SEED
from ablax.sweeps.match import match as match
from ablax.sweeps.scale import scale as scale
from ablax.sweeps.tuned import tuned as tuned

Overrides = dict[str, Any]
Toggles = Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compared and how it will be read, settled before the first cell runs.

    Attributes:
      cells: flat overrides, one dict for every cell.
      metric: what arms are compared by.
      baseline: the arm that the others are compared with; the first one's name when None.
      looks: a boundary, `Spending` or `Anytime`, by which arms may stop before all their seeds have run; None for one
        look, at the end.
      halving: rungs at which trials of `tuned` stop that are behind; None to train all of them to their end.
    """

    cells: Sequence[Mapping[str, Any]]
    metric: str = "bits_per_byte"
    baseline: str | None = None
    looks: Boundary | None = None
    halving: Halving | None = None


def plan_of(made: Any) -> Plan:
    """The plan that `get_sweep()` returned, as it is or as a list of overrides.

    Raises:
      RequestError: if it is neither, or the plan is empty.
    """
    plan = made if isinstance(made, Plan) else None
    if plan is None and isinstance(made, Iterable) and not isinstance(made, str | Mapping):
        plan = Plan(list(made))
    if plan is None:
        raise RequestError(
            f"get_sweep() must return a Plan or a list of dicts of dotted path -> value, not {made!r}"
        )
    if plan.looks is not None and plan.halving is not None:
        raise RequestError(
            "the plan has looks and halving: looks test arms and halving chooses among trials; leave out one of both"
        )
    if not plan.cells:
        raise RequestError(
            "the plan is empty: get_sweep() must return at least one dict of overrides"
        )
    return plan


def grid(
    axes: Mapping[str, Iterable[Any]] | None = None, /, **more: Iterable[Any]
) -> list[Overrides]:
    """Every combination of the axes' values; the last axis runs fastest. Axes without a dot may be keywords.

    >>> grid({"model.num_layers": [2, 4], "model.dropout": [0.0]})
    [{'model.num_layers': 2, 'model.dropout': 0.0}, {'model.num_layers': 4, 'model.dropout': 0.0}]
    """
    axes = {**(axes or {}), **more}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def zip_(
    axes: Mapping[str, Iterable[Any]] | None = None, /, **more: Iterable[Any]
) -> list[Overrides]:
    """The axes' first values together, then their second ones, and so on.

    >>> zip_({"model.width": [64, 128], "optimizer.learning_rate": [4e-3, 2e-3]})
    [{'model.width': 64, 'optimizer.learning_rate': 0.004}, {'model.width': 128, 'optimizer.learning_rate': 0.002}]

    Raises:
      RequestError: if the axes are not equally long.
    """
    values = {path: list(axis) for path, axis in {**(axes or {}), **more}.items()}
    lengths = {path: len(axis) for path, axis in values.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{path} has {length}" for path, length in lengths.items())
        raise RequestError(f"zip_ needs axes of one length: {shown}")
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def leave_one_out(toggles: Toggles, name: str = "full") -> list[Overrides]:
    """An arm with every part, the baseline, and for each part one without it.

    >>> [cell["arm"] for cell in leave_one_out({"a": ({"x": 1}, {"x": 0}), "b": ({"y": 1}, {"y": 0})})]
    ['full', 'without a', 'without b']
    """
    every = set(toggles)
    return [_switched(toggles, every, name)] + [
        _switched(toggles, every - {part}, f"without {part}") for part in toggles
    ]


def add_one_in(toggles: Toggles, name: str = "none") -> list[Overrides]:
    """An arm with no part, the baseline, and for each part one with it alone.

    >>> add_one_in({"a": ({"x": 1}, {"x": 0})})
    [{'arm': 'none', 'x': 0}, {'arm': 'with a', 'x': 1}]
    """
    return [_switched(toggles, set(), name)] + [
        _switched(toggles, {part}, f"with {part}") for part in toggles
    ]


def factorial(toggles: Toggles, fraction: float = 1) -> list[Overrides]:
    """Every combination of the parts, none of them first, which is the baseline; or a regular fraction of them.

    A fraction of 1/2, 1/4, ... is one of highest resolution (Box, Hunter and Hunter 2005, chapter 6): 1/2 of five parts
    confounds an effect of two parts with one of three, and no two main effects with each other.

    >>> [cell["arm"] for cell in factorial({"a": ({"x": 1}, {"x": 0}), "b": ({"y": 1}, {"y": 0})})]
    ['none', 'a', 'b', 'a+b']

    Raises:
      RequestError: if the fraction is no power of 1/2, or confounds two main effects.
    """
    parts = list(toggles)
    chosen = [
        {part for part, on in zip(parts, row, strict=True) if on}
        for row in fraction_of(len(parts), fraction)
    ]
    return [
        _switched(toggles, on, "+".join(p for p in parts if p in on) or "none") for on in chosen
    ]


def _switched(toggles: Toggles, on: set[str], name: str) -> Overrides:
    cell: Overrides = {ARM: name}
    for part, (put_in, taken_out) in toggles.items():
        for path, value in (put_in if part in on else taken_out).items():
            if cell.setdefault(path, value) != value:
                raise RequestError(f"two parts set {path}, one of them {part!r}; give each its own")
    return cell


def seeds(count_or_seeds: int | Iterable[int]) -> list[Overrides]:
    """The seeds 0 ... n-1, or those given.

    >>> seeds(2)
    [{'seed': 0}, {'seed': 1}]
    """
    chosen = range(count_or_seeds) if isinstance(count_or_seeds, int) else count_or_seeds
    return [{SEED: seed} for seed in chosen]


def repeats(count: int) -> list[Overrides]:
    """The same cell `count` times over: what differs between repeats is noise of the machine, not of the seed.

    >>> repeats(2)
    [{'repeat': 0}, {'repeat': 1}]
    """
    return [{REPEAT: repeat} for repeat in range(count)]


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
