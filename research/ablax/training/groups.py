"""Which runs can train as one program, and why the others cannot."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ablax.config import differences, flatten, static, walk

OWN = ("seed",)
"""Knobs besides traced and cosmetic ones in which members may differ."""
SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that can train together.

    Attributes:
      members: their places in the list that was asked about.
      why: they are not in the first group; "" of the first. Of a run that can only train alone, the reason.
      joint: whether they can be members at all.
    """

    members: tuple[int, ...]
    why: str
    joint: bool


def groups(experiments: Sequence[Any], most: int | None = None) -> list[Group]:
    """Divides resolved experiments into those that can train as one program, in their order.

    Members have the same program and data: they differ in traced knobs (zero is none: code leaves out what is zero), in
    the seed, and in cosmetic knobs.

    Args:
      most: members of a group at most, because a device holds the states of all of them; None = any number.
    """
    found: dict[str, list[int]] = {}
    alone: dict[int, str] = {}
    for index, experiment in enumerate(experiments):
        if why := why_alone(experiment):
            alone[index] = why
        else:
            found.setdefault(_program_of(experiment), []).append(index)
    result: list[Group] = []
    for members in found.values():
        size = most or len(members)
        why = _apart(experiments[result[0].members[0]], experiments[members[0]]) if result else ""
        for at in range(0, len(members), size):
            text = why if at == 0 else f"a group has at most {most} members"
            result.append(Group(tuple(members[at : at + size]), text, True))
    result += [Group((index,), why, False) for index, why in alone.items()]
    return result


def why_alone(experiment: Any) -> str | None:
    """Why a run cannot be a member; None if it can."""
    if hasattr(experiment.model, "fit"):
        return f"a {type(experiment.model).__name__} is fitted, and takes no steps"
    parallel = experiment.parallel
    if parallel.engine != "mesh":
        return f"parallel.engine={parallel.engine} has a program for each device"
    for axis, size in parallel.sizes.items():
        if size != 1 and (axis, size) != ("data", -1):
            return f"parallel.{axis}={size} splits a run over devices, which members share"
    if experiment.writers.wandb:
        return "writers.wandb takes one run in a process"
    return None


def _knobs(experiment: Any) -> dict[str, Any]:
    cosmetic = {path for path, _, _, mark in walk(experiment) if mark == "cosmetic"}
    frozen = flatten(static(experiment))
    return {path: value for path, value in frozen.items() if path not in cosmetic | {*OWN}}


def _program_of(experiment: Any) -> str:
    return json.dumps(_knobs(experiment), sort_keys=True, default=list)


def _apart(first: Any, other: Any) -> str:
    here, there = _knobs(first), _knobs(other)
    differing = [
        path
        for path in sorted(here | there)
        if json.dumps(here.get(path), default=list) != json.dumps(there.get(path), default=list)
    ]
    values = differences(first, other)
    shown = [f"{path}: {values[path][0]!r} and {values[path][1]!r}" for path in differing[:SHOWN]]
    more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
    return f"another program than the first group's ({'; '.join(shown)}{more})"
