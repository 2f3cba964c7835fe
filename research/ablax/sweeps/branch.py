"""One trunk and its branches: arms that go on from the same state, and share what it cost."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablax.config import RequestError
from ablax.sweeps.keys import ARM, BRANCH, LINKS, MATCH, REPEAT, SCALE, SEED, TRUNK

STEPS, AT_END = "training.steps", "checkpoint.at_end"


def branch(
    trunk: Mapping[str, Any] | Iterable[Mapping[str, Any]],
    at_step: int,
    arms: Iterable[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A trunk, and arms that go on from its state: parameters, optimizer, data position and random numbers.

    An arm's overrides come on top of the trunk's. `product(branch(...), seeds(3))` trains a trunk for each seed, and
    its arms are paired by it. Seeds inside of `arms` share one trunk: they are no independent runs, and a report gives
    no interval for them.

    The trunk's learning rates must be those of the longer runs: it takes a constant schedule, say, with a warm-up in
    steps, and the arms decay.

    >>> arms = [{"arm": "kept"}, {"arm": "decayed", "schedule.kind": "wsd", "schedule.decay": 50}]
    >>> [(cell["arm"], cell.get("training.steps")) for cell in branch({"training.steps": 150}, 100, arms)]
    [('trunk', 100), ('kept', 150), ('decayed', 150)]

    Args:
      trunk: its overrides, or a plan of one cell; it is called "trunk" unless they name it.
      at_step: the trunk's length in steps, after which the arms differ.

    Raises:
      RequestError: if `at_step` is no whole number above 0, there are no arms, the trunk is not one cell, or a cell
        waits for another plan's numbers.
    """
    if not isinstance(at_step, int) or isinstance(at_step, bool) or at_step < 1:
        raise RequestError(f"branch: at_step={at_step!r} must be a whole number of steps >= 1")
    trunks: list[Any] = [trunk] if isinstance(trunk, Mapping) else [*trunk]
    if len(trunks) != 1:
        raise RequestError(
            f"branch: the trunk must be one cell, not {len(trunks)}; seeds come by product(branch(...), seeds(n))"
        )
    base: dict[str, Any] = dict(trunks[0])
    arms = [dict(arm) for arm in arms]
    name = str(base.pop(ARM, TRUNK))
    if not arms:
        raise RequestError(f"branch: {name!r} has no arms; give at least one")
    for cell in (base, *arms):
        if taken := [word for word in (MATCH, SCALE, *LINKS) if word in cell]:
            raise RequestError(
                f"branch: arm {cell.get(ARM, name)!r} is made by `{taken[0]}`, whose numbers are not known yet; branch "
                "plain arms"
            )
    own = {**base, STEPS: at_step, AT_END: "state"}
    # Two trunks of one name differ in what they set, a seed perhaps.
    made = {"of": name, "at_step": at_step, "base": repr(sorted(base.items()))}
    cells = [{ARM: name, **own, TRUNK: {**made, "sets": list(own)}}]
    for arm in arms:
        own = {**_left(base, arm), **arm}
        sets = [path for path in own if path != ARM]
        cells.append({**own, BRANCH: {**made, "sets": sets}})
    return cells


def _left(trunk: Mapping[str, Any], arm: Mapping[str, Any]) -> dict[str, Any]:
    """What an arm leaves of a trunk's overrides: a kind that it chooses replaces the fields of the one before."""
    replaced = tuple(path.removesuffix(".kind") + "." for path in arm)
    return {path: value for path, value in trunk.items() if not f"{path}.".startswith(replaced)}


def tied(cells: Sequence[Any]) -> list[Any]:
    """The cells of a plan, where every branch knows its trunk's `folder` and `arm`: the one of its `branch` with which
    it has in common all that was set on both since, seed included.

    Raises:
      RequestError: if a trunk is gone from the plan, or a cell is also another combinator's.
    """
    made = []
    for cell in cells:
        links = dict(cell.links)
        if len(links) > 1:
            raise RequestError(
                f"arm {cell.arm!r} is both tuned and of a plan by `branch`; leave out one of both"
            )
        if link := links.get(BRANCH):
            trunk = next((one for one in cells if _goes_on(cell, one)), None)
            if trunk is None:
                raise RequestError(
                    f"arm {cell.arm!r} goes on from {link['of']!r}, of which the plan has no cell that fits it; keep "
                    "the plan that branch() returns whole"
                )
            links = {BRANCH: {"of": trunk.folder, "arm": trunk.arm, "at_step": link["at_step"]}}
        elif link := links.get(TRUNK):
            links = {TRUNK: {"at_step": link["at_step"]}}
        made.append(dataclasses.replace(cell, links=links))
    return made


def _goes_on(cell: Any, trunk: Any) -> bool:
    ours, theirs = cell.links[BRANCH], trunk.links.get(TRUNK)
    if theirs is None or any(ours[key] != theirs[key] for key in ("of", "at_step", "base")):
        return False
    return _later(cell, ours["sets"]) == _later(trunk, theirs["sets"])


def _later(cell: Any, sets: Sequence[str]) -> dict[str, Any]:
    """What was set on a cell after its `branch` was made."""
    found = {path: value for path, value in cell.overrides.items() if path not in sets}
    return found if REPEAT in sets else {**found, REPEAT: cell.repeat}


def tangled(plan: Mapping[str, Any]) -> dict[str, str]:
    """The arms whose seeds are no independent runs, because several are branches of one trunk; and why.

    Args:
      plan: what `read_plan` returns.
    """
    trunks: dict[str, dict[str, set[int]]] = {}
    for cell in plan["cells"]:
        if link := cell.get("links", {}).get(BRANCH):
            trunks.setdefault(cell["arm"], {}).setdefault(link["of"], set()).add(cell[SEED])
    return {
        arm: f"its {max(map(len, own.values()))} runs are branches of one trunk and no independent seeds: no interval"
        for arm, own in trunks.items()
        if any(len(seeds) > 1 for seeds in own.values())
    }


def lines_of(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a report says of trunks and branches (see `branches_in`), in sentences."""
    lines = []
    for one in found:
        lines.append(
            f"{', '.join(one['arms'])}: branches of {one['trunk']} from step {one['at_step']:,} on; branches of one "
            "trunk are not independent seeds"
            + ("" if one["spread"] else f", and here each seed has its own, {one['cells']} in all")
        )
        flops = "" if one["flops"] is None else f", {one['flops']:.2e} FLOPs"
        lines.append(
            f"{one['trunk']}: {one['steps']:,} steps{flops}, {one['seconds']:,.1f} s in all, counted once; an arm's "
            f"FLOPs, seconds and tokens/s are those after step {one['at_step']:,}"
        )
        lines += [
            f"{arm}: mean {spread['mean']:.4f}, {spread['low']:.4f} to {spread['high']:.4f}, over these {spread['n']} "
            "branches of one trunk; other trunks may differ more"
            for arm, spread in one["spread"].items()
        ]
    return lines
