"""What a plan over sizes shows: laws, best sizes, and how differences between arms change with scale."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ablax.config import RequestError
from ablax.history import higher_is_better
from ablax.sweeps.isoflops import Valley, exponent, valley
from ablax.sweeps.laws import bootstrap, fit_law
from ablax.sweeps.pictures import canvas
from ablax.sweeps.statistics import CONFIDENCE
from ablax.sweeps.trends import trend


@dataclasses.dataclass(frozen=True)
class Point:
    """One finished run of a plan over sizes; `place` is its size with its ratio or budget, `budget` its nominal FLOPs
    or None."""

    arm: str
    place: str
    seed: int
    parameters: float
    tokens: float
    flops: float
    budget: float | None
    value: float


def points_of(plan: Mapping[str, Any], values: Mapping[str, Mapping[int, float]]) -> list[Point]:
    """The runs of a plan that `scale` made; none for another plan.

    Args:
      plan: what `sweep.json` holds; its `solved` are the sizes.
      values: arm -> seed -> metric.
    """
    found = []
    for arm, notes in plan.get("solved", {}).items():
        note = next((note for note in notes if "of" in note), None)
        if note is None:
            continue
        budget, ratio = note.get("flops"), note.get("tokens_per_parameter")
        place = f"{note['size']},{f'{budget:g} FLOPs' if ratio is None else f'{ratio:g}x'}"
        numbers = (note["parameters"], note["tokens"], note["run_flops"], budget)
        found += [
            Point(note["of"], place, seed, *numbers, value)
            for seed, value in values.get(arm, {}).items()
        ]
    return found


def scaling_of(
    plan: Mapping[str, Any], values: Mapping[str, Mapping[int, float]], metric: str
) -> dict[str, Any] | None:
    """What `scaling` finds in a plan's runs; None for a plan without sizes.

    Args:
      plan: what `sweep.json` holds; `values`: arm -> seed -> metric.
    """
    notes = plan.get("solved", {}).get(plan["baseline"], [])
    baseline = next((note["of"] for note in notes if "of" in note), "")
    return scaling(points_of(plan, values), baseline, metric)


def scaling(points: Sequence[Point], baseline: str, metric: str) -> dict[str, Any] | None:
    """Everything that a report says about scale; None if there are no points.

    Args:
      baseline: an arm's name, without a size.

    Returns:
      `baseline`, `metric`; `points`: the runs as dicts; `differences`: arm -> `Trend` as a dict; `laws`: arm -> dict
      with E, A, alpha, B, beta and `intervals` of E, alpha and beta (by drawing residuals anew), or with `why` there
      is none; `best_sizes`: arm -> `valleys` and `exponent`, empty without iso-FLOP runs.
    """
    if not points:
        return None
    arms = list(dict.fromkeys(point.arm for point in points))
    own = {arm: [point for point in points if point.arm == arm] for arm in arms}
    compute = {point.place: point.flops for point in own.get(baseline, ())}
    table = {arm: _by_place(own[arm]) for arm in arms}
    differences = {
        arm: dataclasses.asdict(trend(table.get(baseline, {}), table[arm], compute))
        for arm in arms
        if arm != baseline
    }
    return {
        "baseline": baseline,
        "metric": metric,
        "points": [dataclasses.asdict(point) for point in points],
        "differences": differences,
        "laws": {arm: _law(own[arm], metric) for arm in arms},
        "best_sizes": {
            arm: found for arm in arms if (found := _valleys(own[arm], metric))["valleys"]
        },
    }


def _by_place(points: Sequence[Point]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for point in points:
        found.setdefault(point.place, {})[point.seed] = point.value
    return found


def _arrays(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = [(point.parameters, point.tokens, point.value) for point in points]
    parameters, tokens, values = np.array(rows, np.float64).T
    return parameters, tokens, values


def _law(points: Sequence[Point], metric: str) -> dict[str, Any]:
    if higher_is_better(metric):
        return {"why": f"{metric} is no loss"}
    arrays = _arrays(points)
    try:
        law = fit_law(*arrays)
    except RequestError as error:
        return {"why": str(error)}
    drawn = bootstrap(law, *arrays)
    intervals = {
        name: np.quantile(
            [getattr(one, name) for one in drawn], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        ).tolist()
        for name in ("E", "alpha", "beta")
    }
    return {**dataclasses.asdict(law), "intervals": intervals}


def _valleys(points: Sequence[Point], metric: str) -> dict[str, Any]:
    sign = -1 if higher_is_better(metric) else 1
    found: dict[float, Valley] = {}
    for budget in sorted({point.budget for point in points if point.budget is not None}):
        parameters, _, values = _arrays([point for point in points if point.budget == budget])
        found[budget] = valley(budget, parameters, sign * values)
    valleys = [
        dataclasses.asdict(dataclasses.replace(v, loss=v.loss and sign * v.loss))
        for v in found.values()
    ]
    return {"valleys": valleys, "exponent": exponent(found)}


def lines_of(found: Mapping[str, Any] | None) -> list[str]:
    """What `scaling` found, in sentences."""
    if found is None:
        return []
    lines = []
    for arm, one in found["differences"].items():
        line = f"{arm} minus {found['baseline']}: {one['verdict']}"
        if one["slope_interval"]:
            low, high = one["slope_interval"]
            line += (
                f"; {one['smallest']:+.4f} at {one['compute'][0]:.2g} FLOPs, {one['largest']:+.4f} at "
                f"{one['compute'][1]:.2g}; per factor 10 of compute {one['slope']:+.4f}, 95 % interval {low:+.4f} to "
                f"{high:+.4f}"
            )
        lines.append(line + (f" ({one['why']})" if one["why"] else ""))
    for arm, law in found["laws"].items():
        if "why" in law:
            lines.append(f"{arm}: no law L(N, D): {law['why']}")
            continue
        shown = ", ".join(
            f"{name} {law[name]:.3g} ({low:.3g} to {high:.3g})"
            for name, (low, high) in law["intervals"].items()
        )
        lines.append(
            f"{arm}: L = E + A / N^alpha + B / D^beta with {shown}, A {law['A']:.3g}, B {law['B']:.3g}"
        )
    for arm, best in found["best_sizes"].items():
        for one in best["valleys"]:
            line = f"{arm} at {one['flops']:.3g} FLOPs: "
            line += f"best size {one['parameters']:.3g}" if one["parameters"] else "no best size"
            if one["interval"]:
                line += " ({:.3g} to {:.3g})".format(*one["interval"])
            lines.append(line + (f" ({one['why']})" if one["why"] else ""))
    lines.append("nothing is said beyond 4 times the largest size or compute that was trained")
    return lines


def draw_scaling(
    points: Sequence[Point], unit: str, out: Path | str | BinaryIO, dark: bool = False
) -> bool:
    """Metric over FLOPs, each arm's runs and their means; False, and no picture, if there are no points."""
    if not points:
        return False
    with canvas(out, 7.0, 4.5, dark) as figure:
        axes = figure.subplots()
        for index, arm in enumerate(dict.fromkeys(point.arm for point in points)):
            own = [point for point in points if point.arm == arm]
            places: dict[str, list[Point]] = {}
            for point in own:
                places.setdefault(point.place, []).append(point)
            means = sorted(
                (p[0].flops, float(np.mean([q.value for q in p]))) for p in places.values()
            )
            axes.plot(*zip(*means, strict=True), color=f"C{index}", label=arm)
            axes.plot([p.flops for p in own], [p.value for p in own], ".", color=f"C{index}")
        axes.set_xscale("log")
        axes.set_xlabel("FLOPs of a run's matrix products")
        axes.set_ylabel(unit)
        axes.legend()
    return True
