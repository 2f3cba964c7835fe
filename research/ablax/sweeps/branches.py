"""The branches of a plan with their configurations, and as they stand in a sweep's folder."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ablax import inspection
from ablax.config import Duration, RequestError, differences, walk
from ablax.folders import check_changes, fork
from ablax.run import RunFolder
from ablax.sweeps.audit import flops
from ablax.sweeps.branch import tangled
from ablax.sweeps.cells import Cell, is_finished, read_record
from ablax.sweeps.keys import BRANCH, TRUNK
from ablax.sweeps.statistics import summary
from ablax.trainer import Run, classes_of, specials_of
from ablax.training import session
from ablax.training.growth import same_rates
from ablax.training.masks import parameter_path
from ablax.training.state import without_hyper

SHAPING = ("data", "model", "objective", "optimizer", "training")
"""Groups of knobs on which the shapes of a state may depend."""
ANY_VOCABULARY = 64
"""Trunk and branch have the same tokens, however many."""


def check_branches(
    cells: Sequence[Cell], experiments: Mapping[str, Any], offline: bool = False
) -> None:
    """Refuses branches that could not go on from their trunk's state.

    Raises:
      RequestError: with the arm's name.
    """
    seen = set()
    for cell in cells:
        link = cell.links.get(BRANCH)
        if link is None or cell.arm in seen:  # seeds change nothing of this
            continue
        seen.add(cell.arm)
        try:
            _check(
                experiments[link["of"]], experiments[cell.folder], link["at_step"], link, offline
            )
        except RequestError as error:
            raise RequestError(f"arm {cell.arm!r}: {error}") from None


def _check(trunk: Any, branch: Any, at_step: int, link: Mapping[str, Any], offline: bool) -> None:
    for one in (trunk, branch):
        if hasattr(one.model, "fit"):
            raise RequestError(
                f"a {type(one.model).__name__} is fitted to counts and has no steps to branch from; leave it out"
            )
    changed = differences(trunk, branch)
    check_changes(changed)
    if missing := set(specials_of(branch)) - set(specials_of(trunk)):
        raise RequestError(
            f"its objective needs the tokens {', '.join(sorted(missing))}, which its trunk's tokenizer lacks; give the "
            "trunk an objective that has them"
        )
    clock, before = _clock(branch, offline), _clock(trunk, offline)
    if before.total != at_step:
        raise RequestError(
            f"its trunk takes training.steps={before.total}, and it branches at step {at_step}; let nothing but "
            "branch() say how long a trunk is"
        )
    if at_step >= clock.total:
        raise RequestError(
            f"it branches at step {at_step} and ends with training.steps={clock.total}, which leaves nothing to do; "
            "branch earlier, or raise training.steps"
        )
    longer = session.Clock(clock.total, before.tokens_per_step, before.steps_per_epoch)
    if not same_rates(trunk, at_step, before, longer):
        raise RequestError(
            f"the learning rates of {link['arm']!r} depend on how long it is, {at_step} steps as a trunk and "
            f"{clock.total} with its branch; give the trunk schedule.kind=constant with a warm-up in steps, and let "
            "arms decay"
        )
    if {path.partition(".")[0] for path in changed if path != "training.steps"} & {*SHAPING}:
        _check_state(trunk, branch, clock.steps_per_epoch)


def _clock(experiment: Any, offline: bool) -> session.Clock:
    lengths = [value for _, _, value, _ in walk(experiment) if isinstance(value, Duration)]
    epochs = any(length.unit == "epochs" for length in lengths)
    corpus = inspection.corpus_of(experiment, offline) if epochs else None
    per_epoch: Any = inspection.steps_per_epoch(experiment, corpus)
    total = inspection.durations(experiment, per_epoch)["training.steps"]
    return session.Clock(
        total, experiment.training.batch_size * experiment.data.sequence_length, per_epoch
    )


def _check_state(trunk: Any, branch: Any, per_epoch: float | None) -> None:
    ours, theirs = (_leaves(one, per_epoch) for one in (branch, trunk))
    for path in sorted(ours | theirs):
        if ours.get(path) != theirs.get(path):
            shapes = [f"{side[path]}" if path in side else "none" for side in (theirs, ours)]
            raise RequestError(
                f"its state has another {path} than its trunk's, {shapes[0]} -> {shapes[1]}, and goes on from that; "
                "change it in the trunk"
            )


def _leaves(experiment: Any, per_epoch: float | None) -> dict[str, str]:
    # A kernel changes no shape, and not all can be traced here.
    lean = inspection.without_kernel(experiment)
    program = inspection.program_of(lean, ANY_VOCABULARY, per_epoch)
    state = without_hyper(session.abstract_state(program, lean))
    return {
        parameter_path(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def start(sweep: Path, cell: Cell, experiment: Any, extend: Iterable[Any]) -> None:
    """Makes a branch's run folder of its trunk's last state, unless it was made before.

    Args:
      cell: whose lease is held.

    Raises:
      RequestError: if its trunk is not finished, or its state is gone.
      RunFailed: if the state cannot be copied.
    """
    folder, link = sweep / cell.folder, cell.links[BRANCH]
    if RunFolder(folder).exists():
        return
    record = read_record(sweep, link["of"])
    if record["status"] != "finished":
        why = f" ({record['error']})" if record.get("error") else ""
        raise RequestError(
            f"its trunk {link['of']} is {record['status']}{why}, so there is nothing to go on from; mend that, and run "
            "the sweep again"
        )
    for left in folder.parent.glob(f".{folder.name}.[0-9]*"):  # by a kill in the middle of a fork
        shutil.rmtree(left, ignore_errors=True)
    known = [*extend, *classes_of(experiment)]
    fork(f"{sweep / link['of']}@{link['at_step']}", folder, config=experiment, extend=known)


def own_part(run: Run) -> dict[str, Any]:
    """What a run took itself, without the trunk from which it goes on: `seconds`, `tokens_per_second`, `steps`."""
    folder = RunFolder(run.workdir)
    parent = folder.status().get("parent") or {}
    if "seconds" not in parent:  # it began by itself
        speed = run.tokens_per_second
        return {"seconds": run.seconds, "tokens_per_second": speed, "steps": run.step}
    speeds = sorted(
        record["tokens_per_second"]
        for record in folder.metrics()
        if "tokens_per_second" in record and record["step"] > parent["step"]
    )
    return {
        "seconds": run.seconds - parent["seconds"],
        "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
        "steps": run.step - parent["step"],
    }


def branches_in(
    sweep: Path, plan: Mapping[str, Any], values: Mapping[str, Mapping[int, float]]
) -> list[dict[str, Any]]:
    """What a report says of branches, one dict per trunk: `trunk`, `at_step`, `arms`; `cells`, `steps`, `seconds`,
    `flops` of the trunk's finished runs together; `spread`: arm -> `n`, `mean`, `low`, `high` of runs that have one
    trunk.

    Args:
      plan: with its trunks; `values`: arm -> seed -> metric.
    """
    trunks: dict[str, list[str]] = {}
    steps: dict[str, int] = {}
    for cell in plan["cells"]:
        if link := cell.get("links", {}).get(TRUNK):
            trunks.setdefault(cell["arm"], []).append(cell["folder"])
            steps[cell["arm"]] = link["at_step"]
    known = tangled(plan)
    found = []
    for trunk, folders in trunks.items():
        cells = [c for c in plan["cells"] if c["links"].get(BRANCH, {}).get("arm") == trunk]
        arms = list(dict.fromkeys(cell["arm"] for cell in cells))
        done = [f for f in folders if is_finished(sweep, f)]
        records = [read_record(sweep, folder) for folder in done]
        spent = [one for folder in done if (one := flops(sweep / folder)) is not None]
        found.append(
            {
                "trunk": trunk,
                "at_step": steps[trunk],
                "arms": arms,
                "cells": len(folders),
                "steps": sum(record["step"] for record in records),
                "seconds": sum(record["seconds"] for record in records),
                "flops": sum(spent) if spent else None,
                "spread": {
                    arm: _spread(values[arm]) for arm in arms if arm in known and arm in values
                },
            }
        )
    return found


def _spread(values: Mapping[int, float]) -> dict[str, Any]:
    found = summary(values)
    return {
        "n": found.n,
        "mean": found.mean,
        "low": min(values.values()),
        "high": max(values.values()),
    }
