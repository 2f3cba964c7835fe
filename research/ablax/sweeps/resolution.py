"""A plan with an experiment's configuration: every cell resolved and validated, before anything is written."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablax.config import RequestError, suggest
from ablax.experiment import resolve
from ablax.sweeps.branches import check_branches
from ablax.sweeps.cells import Cell, analysis_of, cells_of
from ablax.sweeps.early import seeds_of
from ablax.sweeps.halved import check_halving
from ablax.sweeps.plan import plan_of
from ablax.sweeps.solved import solved
from ablax.training.evaluators import metrics_of


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A plan with its configurations.

    Attributes:
      cells: in the plan's order.
      experiments: folder -> configuration.
      solved: arm -> what `match` and the like solved for it.
      analysis: see `analysis_of`.
    """

    cells: Sequence[Cell]
    experiments: Mapping[str, Any]
    solved: Mapping[str, list[dict[str, Any]]]
    analysis: Mapping[str, Any]


def resolve_plan(
    config: Any, plan: Any, extend: Iterable[Any] = (), offline: bool = False
) -> Resolved:
    """Resolves and validates every cell of a plan.

    Args:
      plan: what `get_sweep()` returned.

    Raises:
      RequestError: with the arm's name, for the first cell whose configuration is refused; or if the plan itself is, or
        no arm reports its metric.
    """
    plan, extend = plan_of(plan), tuple(extend)
    overrides, notes = solved(config, plan.cells, extend=extend, offline=offline)
    cells = cells_of(overrides)
    analysis = analysis_of(plan, cells)
    experiments = {}
    for cell in cells:
        try:
            experiments[cell.folder] = resolve(config, cell.overrides, extend=extend)
        except RequestError as error:
            raise RequestError(f"arm {cell.arm!r}: {error}") from None
    check_branches(cells, experiments, offline)
    if plan.halving is not None:
        check_halving(plan.halving, cells, experiments)
    known = sorted({name for one in experiments.values() for name in metrics_of(one)})
    if plan.metric not in known:
        raise RequestError(f"metric={plan.metric}: no arm reports it{suggest(plan.metric, known)}")
    if plan.looks is not None:
        content = {**analysis, "cells": [dataclasses.asdict(cell) for cell in cells]}
        plan.looks.looks(len(seeds_of(content)))
    found = {cell.arm: note for cell, note in zip(cells, notes, strict=True) if note}
    return Resolved(cells, experiments, found, analysis)


def check_portable(values: Any, resolved: Resolved, extend: tuple[Any, ...]) -> None:
    """Refuses cells that another process would not read from JSON as they are here.

    Raises:
      RequestError: with the first arm's name.
    """
    values = json.loads(json.dumps(values, default=str))
    for cell in resolved.cells:
        overrides = json.loads(json.dumps(cell.overrides, default=str))
        try:
            there = resolve(values, overrides, extend=extend)
            same = there == resolved.experiments[cell.folder]
        except RequestError:
            same = False
        if not same:
            raise RequestError(
                f"arm {cell.arm!r} has values that another process cannot read from a file; write them as numbers, "
                "texts and lists, and classes as module:Name, or use --launcher=inline"
            )
