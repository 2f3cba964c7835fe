"""A report as text: the table's rows, what they cannot tell, the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from ablax.history import higher_is_better, outermost, unit
from ablax.sweeps.sections import sections
from ablax.sweeps.statistics import FEW

COLUMNS = (
    "arm",
    "mean",
    "seeds",
    "difference",
    "95 % interval",
    "p (Holm)",
    "effect",
    "parameters",
    "FLOPs",
    "seconds",
    "tokens/s",
)


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The comparable arms as text, in the order of `COLUMNS`."""
    return [
        (
            _name(found, row),
            f"{row['mean']:.4f}",
            str(row["n"]) + " of one trunk" * row["tangled"],
            "-" if row["difference"] is None else f"{row['difference']:+.4f}",
            "-" if row["interval"] is None else "{:+.4f} to {:+.4f}".format(*row["interval"]),
            "-" if row["p_holm"] is None else f"{row['p_holm']:.2g}" + " *" * row["star"],
            "-" if row["effect"] is None else f"{row['effect']:+.1f}",
            _count(row["parameters"]),
            "-" if row["flops"] is None else f"{row['flops']:.2e}",
            _seconds(row["seconds"]),
            _count(row["tokens_per_second"]),
        )
        for row in found["arms"]
    ]


def _name(found: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    if row["arm"] == found["baseline"]:
        return f"{row['arm']} (baseline)"
    return f"{row['arm']} (exploratory)" if row["exploratory"] else row["arm"]


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def apart(found: Mapping[str, Any]) -> list[str]:
    """The arms that are not comparable, one line each: their own metrics, their cost, the reason."""
    lines = []
    for row in found["not_comparable"]:
        metrics = ", ".join(f"{unit(name)} {value:.4g}" for name, value in row["metrics"].items())
        cost = f"{row['n']} seeds, {_count(row['parameters'])} parameters, {_seconds(row['seconds'])} s"
        lines.append(f"{row['arm']} ({cost}): {metrics}. Why: {row['reason']}")
    return lines


def changes(found: Mapping[str, Any]) -> list[str]:
    """What makes an arm another one than the baseline, one line each, and whether their data were the same."""
    lines = []
    for row in found["arms"]:
        if row["changes"] is None:
            continue
        knobs = outermost(row["changes"])
        said = (
            ", ".join(f"{path} {old} -> {new}" for path, (old, new) in knobs.items()) or "nothing"
        )
        data = {True: "; the same batches by the ledger", False: "; other batches", None: ""}
        lines.append(f"{row['arm']}: {said}{data[row['same_batches']]}")
    return lines


def notes(found: Mapping[str, Any]) -> list[str]:
    """What the table cannot tell, one line each."""
    lines = found["looks"] + [
        f"{row['arm']}: {why}"
        for row in found["arms"]
        for why in (row["why"], row["warning"])
        if why
    ]
    told = [row for row in found["arms"] if row["interval"]]
    lines += map(_power, [row for row in told if row["detectable"] is not None])
    if told and min(row["n"] for row in told) < FEW:
        lines.append(
            "Intervals and p hold for noise that is symmetric, and so few seeds do not show whether it is: where one "
            "arm has log-normal noise, such intervals were seen to hold the truth in 81 to 87 % of sweeps"
        )
    lines += [
        f"{row['arm']}: it did not see the batches of {found['baseline']} (ablax ledger --compare says where they part)"
        for row in found["arms"]
        if row["same_batches"] is False
    ]
    return lines


def _power(row: Mapping[str, Any]) -> str:
    line = f"{row['arm']}: {row['n']} seeds show a true difference of {row['detectable']:.2g} with a chance of 80 %"
    if row["seeds_needed"] is not None:
        line += f"; for one of {abs(row['difference']):.2g} it takes {row['seeds_needed']:,}"
    if row["correlation"] is None:
        return line
    return f"{line}; over seeds the arm moves with the baseline by r = {row['correlation']:+.2f}"


def caption(found: Mapping[str, Any]) -> str:
    """What the table shows."""
    better = "higher" if higher_is_better(found["metric"]) else "lower"
    same = [row["same_batches"] for row in found["arms"] if row["arm"] != found["baseline"]]
    exploratory = (
        f"Exploratory, {'; '.join(found['exploratory'])}: " if found["exploratory"] else ""
    )
    splits = " and ".join(sorted({row["split"] for row in found["arms"]}))
    return (
        f"{exploratory}{found['unit']} on {splits} ({better} is better); difference from {found['baseline']}, "
        "paired by seed, with its paired t interval, p adjusted for all arms, and effect in standard deviations of the "
        "pairs' differences" + (", over the same batches" if same and all(same) else "")
    )


def markdown(found: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The report as a page.

    Args:
      pictures: what each shows -> where it lies, from the page.
    """
    lines = [f"# {found['experiment'] or 'Sweep'}", "", caption(found) + ".", ""]
    lines += [_line(COLUMNS), _line(["---"] + ["---:"] * (len(COLUMNS) - 1))]
    lines += [_line(row) for row in rows(found)]
    if other := apart(found):
        lines += ["", "## Not comparable with these", "", *(f"- {line}" for line in other)]
    if made := changes(found):
        lines += [
            "",
            f"## What differs from {found['baseline']}",
            "",
            *(f"- {line}" for line in made),
        ]
    for heading, own in sections(found).items():
        lines += ["", f"## {heading}", "", *(f"- {line}" for line in own)]
    if said := notes(found):
        lines += ["", "## What this does not tell", "", *(f"- {line}" for line in said)]
    for shown, path in pictures.items():
        lines += ["", f"![{shown}]({path})"]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
