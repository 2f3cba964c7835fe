"""Arms at several sizes, each with as many steps as its size asks for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablax.config import RequestError
from ablax.sweeps.keys import ARM, SCALE

STEPS = "training.steps"


def scale(
    arms: Iterable[Mapping[str, Any]],
    sizes: Mapping[str, Mapping[str, Any]],
    tokens_per_parameter: float | Sequence[float] = (),
    *,
    flops: float | Sequence[float] = (),
    embeddings: bool = False,
) -> list[dict[str, Any]]:
    """Every arm at every size, trained on so many tokens per parameter, or for so many FLOPs; the number of steps is
    solved when the experiment is known.

    The report then says whether differences between arms grow or shrink with scale, and fits a law L(N, D) to arms that
    have several ratios, and iso-FLOP curves to those that have FLOPs (Hoffmann et al. 2022, arXiv:2203.15556).

    >>> [cell["arm"] for cell in scale([{"arm": "gelu"}], {"64": {"model.width": 64}}, [5, 20])]
    ['gelu,64,5x', 'gelu,64,20x']

    Args:
      arms: named; the first is the baseline.
      sizes: name -> overrides, `{"small": {"model.width": 64, "model.num_layers": 2}, ...}`.
      tokens_per_parameter: one ratio or several.
      flops: budgets of matrix products of a run; either these or ratios.
      embeddings: whether tables of tokens and positions count as parameters, as in Hoffmann et al. 2022; without them
        small models are on the same line as large ones (Kaplan et al. 2020, arXiv:2001.08361, section 3.2).

    Raises:
      RequestError: if an arm has no name or sets what a size sets, or what is asked for is not positive.
    """
    ratios, budgets = _list(tokens_per_parameter), _list(flops)
    if bool(ratios) == bool(budgets) or min([*ratios, *budgets]) <= 0:
        raise RequestError(
            f"scale: tokens_per_parameter={tokens_per_parameter}, flops={flops}: give positive numbers for one of both"
        )
    amounts = [("tokens_per_parameter", ratio) for ratio in ratios]
    amounts += [("flops", budget) for budget in budgets]
    cells = []
    for arm in arms:
        if ARM not in arm:
            raise RequestError(f"scale: {dict(arm)} has no name; give each arm its own by `named`")
        for size, overrides in sizes.items():
            if taken := [path for path in (*overrides, STEPS) if path in arm]:
                raise RequestError(
                    f"scale: arm {arm[ARM]!r} sets {taken[0]}, which its size sets; leave it to one of them"
                )
            for unit, amount in amounts:
                shown = f"{amount:g}" + ("x" if ratios else " FLOPs")
                name = f"{arm[ARM]},{size}" + (f",{shown}" if len(amounts) > 1 else "")
                wish = {"of": arm[ARM], "size": size, unit: amount, "embeddings": embeddings}
                cells.append({**arm, **overrides, ARM: name, SCALE: wish})
    return cells


def _list(amounts: float | Sequence[float]) -> list[float]:
    return list(amounts) if isinstance(amounts, Sequence) else [amounts]
