"""Arms with equal budgets: which knob shall make them so is said here, and solved when the experiment is known."""

from collections.abc import Iterable, Mapping
from typing import Any

from ablax.config import RequestError
from ablax.sweeps.keys import ARM, MATCH, REPEAT, SCALE, SEED

BUDGETS = ("params", "flops", "tokens")
TOLERANCE = 0.05


def match(
    plan: Iterable[Mapping[str, Any]],
    budget: str,
    knob: str | Mapping[str, str],
    *,
    baseline: str | None = None,
    multiple_of: int = 1,
    low: int = 1,
    high: int | None = None,
    tolerance: float = TOLERANCE,
) -> list[dict[str, Any]]:
    """Makes every arm equal to the baseline in a budget, as nearly as whole numbers of a knob can.

    The knob's value is not known here: `ablax sweep` finds it before anything starts, and says by how many percent the
    arms still differ. What is set on both by a later `product` counts for both. An arm may be matched twice, by two
    knobs: parameters by a width, then FLOPs by the number of steps.

    >>> arms = [{"arm": "gelu"}, {"arm": "swiglu", "model.activation": "swiglu"}]
    >>> match(arms, "params", "model.feedforward_width", multiple_of=8)[1]["match"][0]["knob"]
    'model.feedforward_width'

    Args:
      budget: `params` (all parameters), `flops` (of a run's matrix products, gradients included) or `tokens` (that a
        run reads).
      knob: a whole-numbered knob that the budget rises with: `model.feedforward_width`, `training.steps`. Or arm ->
        knob; arms that are not named there stay as they are.
      baseline: the arm that others are made equal to; the first one when None.
      multiple_of: what the knob's value must be a multiple of. Values that the experiment refuses (heads that do not
        divide a width) are passed over anyway.
      low: smallest value.
      high: largest value; when None as large as it takes.
      tolerance: the share of the budget by which the nearest value may miss it before the plan is refused.

    Raises:
      RequestError: if there is no such budget or baseline, an arm sets its knob itself, or a number makes no sense.
    """
    cells = [dict(cell) for cell in plan]
    if budget not in BUDGETS:
        raise RequestError(f"match: budget={budget!r} must be one of {', '.join(BUDGETS)}")
    if multiple_of < 1 or low < 1 or (high is not None and high < low) or tolerance <= 0:
        raise RequestError(
            f"match: multiple_of={multiple_of}, low={low}, high={high}, tolerance={tolerance} must be positive, and "
            "low no larger than high"
        )
    if any(SCALE in cell for cell in cells):
        raise RequestError(
            "match: match the arms first, then scale them: scale(match(arms, ...), ...)"
        )
    reference = _reference(cells, baseline)
    for cell in cells:
        own = _changes(cell)
        chosen = knob if isinstance(knob, str) else knob.get(cell.get(ARM, ""))
        if own == reference or chosen is None:
            continue
        if chosen in own:
            raise RequestError(
                f"match: arm {cell.get(ARM, own)!r} sets {chosen}, which is to be solved; leave it to match"
            )
        cell[MATCH] = [
            *own.get(MATCH, ()),
            {
                "budget": budget,
                "knob": chosen,
                "multiple_of": multiple_of,
                "low": low,
                "high": high,
                "tolerance": tolerance,
                "to": reference,
                "instead_of": [path for path in own if path != MATCH],
            },
        ]
    return cells


def _changes(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What an arm sets, whatever its name and seed."""
    return {path: value for path, value in cell.items() if path not in (ARM, SEED, REPEAT)}


def _reference(cells: list[dict[str, Any]], baseline: str | None) -> dict[str, Any]:
    found = [cell for cell in cells if baseline is None or cell.get(ARM) == baseline]
    if not found:
        raise RequestError(f"match: no arm is named {baseline!r}; name one of the plan, or none")
    if MATCH in found[0]:
        raise RequestError(
            f"match: the baseline {found[0].get(ARM)!r} is itself made equal to another arm; choose that one"
        )
    return _changes(found[0])
