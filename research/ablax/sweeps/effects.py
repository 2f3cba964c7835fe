"""Main effects and interactions of a two-level factorial plan, full or a regular fraction of it."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import statsmodels.api as sm
from statsmodels.stats.multitest import multipletests

from ablax.sweeps.branch import tangled
from ablax.sweeps.statistics import CONFIDENCE, diverged


@dataclasses.dataclass(frozen=True)
class Effect:
    """What a part, or two together, do to the metric.

    Attributes:
      factors: one for a main effect, two for an interaction.
      aliases: other effects of at most three factors that the plan cannot tell from it, with their sign.
      effect: of one factor: mean over the arms with it minus mean over those without; of two: half of what the one
        changes in the other's effect (Box, Hunter and Hunter 2005, section 5.5).
      interval, p, p_holm: by least squares with seeds as blocks; None where nothing is left to tell the noise from.
    """

    factors: tuple[str, ...]
    aliases: tuple[str, ...]
    effect: float
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None


def factors_of(
    overrides: Mapping[str, Mapping[str, Any]], baseline: str
) -> dict[str, dict[str, int]] | None:
    """The factors of a two-level plan: name -> arm -> 1, or -1 where it is as in the baseline.

    Knobs that change together are one factor; those of more values must follow from the factors, as sizes that were
    solved for do.

    Args:
      overrides: arm -> what the plan sets, without seeds.

    Returns:
      None if the arms are no full factorial of at least two factors, nor a regular fraction of one.
    """
    if baseline not in overrides:
        return None
    columns: dict[tuple[int, ...], list[str]] = {}
    for path in dict.fromkeys(path for own in overrides.values() for path in own):
        values = [json.dumps(own.get(path), default=str) for own in overrides.values()]
        if len(set(values)) == 2:
            low = json.dumps(overrides[baseline].get(path), default=str)
            columns.setdefault(tuple(-1 if v == low else 1 for v in values), []).append(path)
    table = np.array(list(columns)).T
    if len(columns) < 2 or len({tuple(row) for row in table}) != len(overrides):
        return None
    runs = len(overrides)
    balanced = not table.sum(axis=0).any() and not np.triu(table.T @ table, 1).any()
    if runs & (runs - 1) or not balanced or not _regular(table):
        return None
    names = ("+".join(path.rpartition(".")[2] for path in paths) for paths in columns.values())
    return {
        name: dict(zip(overrides, column, strict=True))
        for name, column in zip(names, columns, strict=True)
    }


def _regular(table: np.ndarray) -> bool:
    """Whether every product of columns is balanced, or always the same."""
    picks = itertools.chain.from_iterable(
        itertools.combinations(range(table.shape[1]), size) for size in range(1, 4)
    )
    sums = {abs(int(table[:, list(chosen)].prod(axis=1).sum())) for chosen in picks}
    return sums <= {0, len(table)}


def effects(
    values: Mapping[str, Mapping[int, float]], factors: Mapping[str, Mapping[str, int]]
) -> list[Effect]:
    """Main effects and interactions of two factors, p adjusted for all of them (Holm 1979).

    The fit has every effect that the arms can tell, so that none of higher order passes for noise; seeds are blocks.
    In such a balanced plan each effect weighs all arms alike, so arms of unequal variance do not bias its error.

    Args:
      values: arm -> seed -> metric, of all arms and the same seeds.
      factors: what `factors_of` returned.
    """
    arms, seeds = list(values), sorted(next(iter(values.values())))
    columns = {name: np.array([levels[arm] for arm in arms]) for name, levels in factors.items()}
    classes: dict[bytes, list[tuple[tuple[str, ...], int]]] = {}
    for size in range(1, len(columns) + 1):
        for chosen in itertools.combinations(columns, size):
            product = np.prod([columns[name] for name in chosen], axis=0)
            if abs(product.sum()) == len(arms):
                continue  # told apart from nothing: a defining word
            sign = int(product[0])
            classes.setdefault((product * sign).tobytes(), []).append((chosen, sign))
    told = [
        (members[0][0], _aliases(members), np.frombuffer(key, dtype=np.int64) * members[0][1])
        for key, members in classes.items()
    ]
    response = np.array([values[arm][seed] for seed in seeds for arm in arms])
    blocks = np.repeat(np.eye(len(seeds)), len(arms), axis=0)
    design = np.column_stack([*(np.tile(column, len(seeds)) for _, _, column in told), blocks])
    fit: Any = sm.OLS(response, design.astype(np.float64)).fit()
    shown = [i for i, (chosen, _, _) in enumerate(told) if len(chosen) <= 2]
    known = fit.df_resid > 0 and fit.ssr > 1e-20 * float((response**2).sum())
    p = fit.pvalues[shown] if known else []
    holm: Any = multipletests(p, method="holm")[1] if known else []
    ends = 2 * fit.conf_int(1 - CONFIDENCE)[shown] if known else []
    return [
        Effect(
            told[i][0],
            told[i][1],
            float(2 * fit.params[i]),
            (float(ends[k][0]), float(ends[k][1])) if known else None,
            float(p[k]) if known else None,
            float(holm[k]) if known else None,
        )
        for k, i in enumerate(shown)
    ]


def _aliases(members: Sequence[tuple[tuple[str, ...], int]]) -> tuple[str, ...]:
    sign = members[0][1]
    return tuple(
        ("" if own == sign else "-") + " x ".join(chosen)
        for chosen, own in members[1:]
        if len(chosen) <= 3
    )


def effects_of(
    plan: Mapping[str, Any], values: Mapping[str, Mapping[int, float]]
) -> dict[str, Any]:
    """`effects` of a factorial plan, None of another; `no_effects`: why they are not told, if so."""
    overrides = overrides_of(plan)
    factors = factors_of(overrides, plan["baseline"])
    if factors is None:
        return {"effects": None, "no_effects": None}
    whole = (
        values.keys() == overrides.keys()
        and len({tuple(sorted(own)) for own in values.values()}) == 1
    )
    finite = all(math.isfinite(value) for own in values.values() for value in own.values())
    if not whole or not finite or diverged(values):
        return {"effects": None, "no_effects": "cells are missing, not comparable or diverged"}
    if tangled(plan):
        return {
            "effects": None,
            "no_effects": "seeds that are branches of one trunk are no independent runs",
        }
    found = effects(values, factors)
    return {"effects": [dataclasses.asdict(one) for one in found], "no_effects": None}


def overrides_of(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm -> what the plan sets for it, without seeds."""
    return {
        cell["arm"]: {k: v for k, v in cell["overrides"].items() if k not in ("seed", "repeat")}
        for cell in plan["cells"]
    }
