"""What a report says of the sweep itself: plan and runs, noise, effects, documents; lines of text."""

from collections.abc import Mapping
from typing import Any

from ablax.sweeps import branch, scaling, tuned


def runs(found: Mapping[str, Any]) -> list[str]:
    """What was planned, what was run, and what differs, one line each."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(found["statuses"].items()))
    lines = [f"{found['planned']} cells were planned: {counts}"]
    for cell in found["unfinished"]:
        error = f": {cell['error']}" if cell["error"] else ""
        lines.append(f"{cell['cell']}: {cell['status']}{error}")
        lines += [f"{cell['cell']}, end of its log: {line}" for line in cell["log"]]
    lines += [f"{cell}: {'; '.join(odd)}" for cell, odd in found["others"].items()]
    if not found["others"]:
        lines.append("all cells ran with the same code and libraries, as far as they recorded them")
    lines += [f"{arm}: exploratory, planned when results were there" for arm in found["added"]]
    lines += [f"exploratory: {what}" for what in found["exploratory"]]
    return lines


def noise(found: Mapping[str, Any]) -> list[str]:
    """Where the noise comes from, and which differences it lets be claimed."""
    own = found["noise"]
    lines = [
        _source(
            "the same arm and seed run again", own["repeat"], "no cell was planned with `repeat`"
        ),
        _source("other seeds of an arm, without that", own["seed"], "no arm has two seeds"),
        _source(
            "other documents, of one trained model",
            own["evaluation"],
            "the run folders hold no sums over documents",
        ),
    ]
    lines += [
        f"{row['arm']}: repeats or documents alone make a difference of {row['floor']:.2g} in one case of 20"
        + (", and its own is no larger" if abs(row["difference"]) <= row["floor"] else "")
        for row in found["arms"]
        if row["floor"] is not None and row["difference"] is not None
    ]
    lines.append(
        "* = p, adjusted by Holm for all arms, is at most 0.05, and the difference is larger than what repeats of a "
        "seed or the choice of documents would make, where that is known"
    )
    return lines


def _source(what: str, deviation: float | None, unknown: str) -> str:
    told = f"standard deviation {deviation:.2g}" if deviation is not None else f"unknown, {unknown}"
    return f"noise of {what}: {told}"


def effects(found: Mapping[str, Any]) -> list[str]:
    """Main effects and interactions of a factorial plan, one line each."""
    if found["no_effects"]:
        return [f"the plan is factorial, but effects are not told: {found['no_effects']}"]
    if not found["effects"]:
        return []
    lines = []
    for effect in found["effects"]:
        line = f"{' x '.join(effect['factors'])}: {effect['effect']:+.4f}"
        if effect["interval"] is None:
            line += ", no interval: nothing is left to tell the noise from"
        else:
            low, high = effect["interval"]
            star = " *" if effect["p_holm"] <= 0.05 else ""
            line += (
                f", 95 % interval {low:+.4f} to {high:+.4f}, p (Holm) {effect['p_holm']:.2g}{star}"
            )
        if effect["aliases"]:
            line += f"; cannot be told from {', '.join(effect['aliases'])}"
        lines.append(line)
    lines.append(
        "by least squares with seeds as blocks and every effect that the arms can tell; p adjusted for all that are "
        "shown. An interaction is half of what one part changes in the other's effect"
    )
    return lines


def responses(found: Mapping[str, Any]) -> list[str]:
    """Where the best of a grid lies, one line for each curve or map."""
    lines = []
    for one in found["responses"]:
        best = ", ".join(f"{k} {v:g}" for k, v in zip(one["knobs"], one["best"], strict=True))
        line = f"{one['others']}: " * bool(one["others"]) + f"best at {best}"
        if one["edges"]:
            line += f", on the edge of the grid in {', '.join(one['edges'])}: a better one may lie beyond"
        lines.append(line)
        if one["ridge"]:
            (first, second), values = one["knobs"], one["ridge"]
            columns, bests = (", ".join(f"{v[i]:g}" for v in values) for i in range(2))
            lines.append(
                f"{one['others']}: " * bool(one["others"])
                + f"at {first} {columns} the best {second} is {bests}"
            )
    return lines


def documents(found: Mapping[str, Any]) -> list[str]:
    """How these trained models differ on other documents: no claim about a method."""
    lines = [
        f"{row['arm']}, {row['these_seeds']} seed{'s' * (row['these_seeds'] != 1)} of both: "
        f"{row['these_models'][0]:+.4f} to {row['these_models'][1]:+.4f}"
        for row in found["arms"]
        if row["these_models"] is not None
    ]
    if lines:
        lines.append(
            "95 % percentile intervals of the difference over documents drawn anew, for the models that were trained "
            "here; other seeds make other models, so this is no interval of a method's effect"
        )
    return lines


def sections(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Heading -> lines; those without lines are left out."""
    made = {
        "Effects of the parts": effects(found),
        "Responses": responses(found),
        "Scale": scaling.lines_of(found["scaling"]),
        "Tuning": tuned.lines_of(found["tuning"]),
        "Branches": branch.lines_of(found["branches"]),
        "Noise": noise(found),
        "What was planned and what was run": runs(found),
        "These trained models only": documents(found),
    }
    return {heading: lines for heading, lines in made.items() if lines}
