"""A plan's deferred sizes, solved for an experiment: equal budgets first, then tokens by parameters."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablax.config import RequestError
from ablax.sweeps.budgets import Budgets
from ablax.sweeps.keys import ARM, LINKS, MATCH, REPEAT, SCALE, SEED
from ablax.sweeps.scale import STEPS
from ablax.sweeps.solver import Search

APART = (ARM, SEED, REPEAT)
OPEN = (MATCH, SCALE)


def solved(
    config: Any,
    cells: Sequence[Mapping[str, Any]],
    *,
    extend: Iterable[Any] = (),
    offline: bool = False,
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """The plan with a value for every knob that `match` and `scale` left open.

    Args:
      config: the experiment's configuration, which the cells override.

    Returns:
      The cells, without deferred sizes; and for each what was solved, a list of dicts that JSON can hold: `budget`,
      `knob`, `value`, `want` (the baseline's amount, or what the size asks for), `got`, `residual_percent`. For a plan
      over sizes also `of`, `size`, its ratio or FLOPs, and the run's `parameters`, `tokens` and
      `run_flops`.

    Raises:
      RequestError: with the arm's name, if no value comes near enough, or its configuration is refused.
    """
    budgets = Budgets(config, extend, offline)
    made, notes = [], []
    seen: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for cell in cells:
        own = {path: value for path, value in cell.items() if path not in APART}
        key = repr(sorted(own.items(), key=lambda item: item[0]))
        if key not in seen:
            try:
                seen[key] = _arm(budgets, own)
            except RequestError as error:
                raise RequestError(f"arm {cell.get(ARM) or own!r}: {error}") from None
        kept = {path: value for path, value in cell.items() if path not in OPEN}
        made.append({**kept, **seen[key][0]})
        notes.append(seen[key][1])
    return made, notes


def _arm(budgets: Budgets, own: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The values of one arm's open knobs, and how near they come."""
    changes = {path: value for path, value in own.items() if path not in (*OPEN, *LINKS)}
    values: dict[str, Any] = {}
    notes = []
    for wish in own.get(MATCH, ()):
        if SCALE in own and wish["budget"] != "params":
            raise RequestError(
                f"scale gives each size its own {wish['budget']}; match params, or nothing"
            )
        shared = {p: v for p, v in changes.items() if p not in wish["instead_of"]}
        want = budgets.cost(wish["budget"], {**_without(wish["to"]), **shared})
        note = _nearest(budgets, wish, want, {**changes, **values})
        values[wish["knob"]] = note["value"]
        notes.append(note)
    if SCALE in own:
        notes.append(_scaled(budgets, own[SCALE], {**changes, **values}))
        values[STEPS] = notes[-1]["value"]
    return values, notes


def _scaled(
    budgets: Budgets, wish: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The number of steps that a size asks for, the nearest above 0."""
    counted = "params" if wish["embeddings"] else "params_without_embeddings"
    parameters = budgets.cost(counted, changes)
    budget, want = "flops", wish.get("flops")
    if want is None:
        budget, want = "tokens", wish["tokens_per_parameter"] * parameters
    tokens_per_step = budgets.cost("tokens", {**changes, STEPS: 1})
    flops_per_token = budgets.cost("flops", changes) / budgets.cost("tokens", changes)
    per_step = tokens_per_step * (flops_per_token if budget == "flops" else 1)
    value = max(1, round(want / per_step))
    got, tokens = per_step * value, tokens_per_step * value
    return {
        **wish,
        "budget": budget,
        "knob": STEPS,
        "value": value,
        "want": want,
        "got": got,
        "residual_percent": 100 * (got / want - 1),
        "parameters": parameters,
        "tokens": tokens,
        "run_flops": flops_per_token * tokens,
    }


def _without(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in overrides.items() if path not in (*APART, *OPEN, *LINKS)}


def _nearest(
    budgets: Budgets, wish: Mapping[str, Any], want: float, changes: Mapping[str, Any]
) -> dict[str, Any]:
    budget, knob, low, high = (wish[name] for name in ("budget", "knob", "low", "high"))
    if knob in changes:
        raise RequestError(f"{knob} is set twice, once to match {budget}; set it in one place")

    def cost(value: int) -> float:
        return budgets.cost(budget, {**changes, knob: value})

    try:
        value, got = Search(cost, wish["multiple_of"], low, high).solve(want)
    except RequestError as error:
        raise RequestError(f"{budget} cannot be matched by {knob}: {error}") from None
    residual = got / want - 1
    if abs(residual) > wish["tolerance"]:
        raise RequestError(
            f"no {knob} from {low} to {high or 'any size'} brings {budget} within {wish['tolerance']:.2%} of "
            f"{want:,.0f}: the closest is {value} with {got:,.0f} ({residual:+.2%}); widen the range, match by another "
            "knob, or raise tolerance"
        )
    return {
        "budget": budget,
        "knob": knob,
        "value": value,
        "want": want,
        "got": got,
        "residual_percent": 100 * residual,
    }
