"""What a sweep will be before it starts: every arm's differences, size, cost, memory and disk."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablax import inspection
from ablax.config import RequestError, flatten
from ablax.difference import differing
from ablax.sweeps.cells import APART, Cell, is_finished
from ablax.sweeps.keys import BRANCH, TRUNK
from ablax.sweeps.resolution import resolve_plan
from ablax.training import session
from ablax.training.disk import free_bytes, size_of
from ablax.training.state import without_hyper

COLUMNS = (
    "arm",
    "cells",
    "differs in",
    "parameters",
    "FLOPs of a cell",
    "memory, one device",
    "disk of a cell",
)


def preview(
    config: Any,
    plan: Any,
    workdir: Path | str,
    *,
    extend: Iterable[Any] = (),
    offline: bool = False,
) -> dict[str, Any]:
    """Resolves, validates and costs every arm; trains nothing and writes nothing into `workdir`.

    Returns:
      `arms`: one dict per arm, in the plan's order, with `arm`, `seeds`, `changes` (knob -> value where it differs from
      the baseline's), `trunk` (whether it is one), `goes_on` (TRUNK@STEP of a branch, else None), `solved` (see
      `ablax.sweeps.solved`), `parameters`, `tokens` and `flops` (of matrix products in training) of one cell, without
      its trunk's, `memory_bytes` on one device that holds everything, by the reference attention, `disk_bytes` of one
      cell's checkpoints at most.
      What a model that is fitted to counts has not is None. `cells`, `flops`: of the whole sweep; `disk_bytes`: of what
      is not finished in `workdir`; `free_bytes` there; `fits`.

    Raises:
      RequestError: if the plan or an arm is refused.
    """
    found = resolve_plan(config, plan, extend, offline)
    cells, resolved = found.cells, found.experiments
    by_arm: dict[str, list[Cell]] = {}
    for cell in cells:
        by_arm.setdefault(cell.arm, []).append(cell)
    corpora: dict[str, Any] = {}
    first = next(cell for cell in cells if cell.arm == found.analysis["baseline"])
    baseline = flatten(resolved[first.folder])
    arms = []
    for arm, own in by_arm.items():
        experiment = resolved[own[0].folder]
        corpus = None
        if inspection.needs_data(experiment):
            key = repr(experiment.data)
            if key not in corpora:
                corpora[key] = inspection.corpus_of(experiment, offline)
            corpus = corpora[key]
        try:
            link = own[0].links.get(BRANCH)
            cost = _cost(experiment, corpus, link["at_step"] if link else 0)
        except RequestError as error:
            raise RequestError(f"arm {arm!r}: {error}") from None
        mine = flatten(experiment)
        changes = {
            path: new for path, (_, new) in differing(baseline, mine).items() if path not in APART
        }
        arms.append(
            {
                "arm": arm,
                "seeds": [cell.seed for cell in own],
                "changes": changes,
                "trunk": TRUNK in own[0].links,
                "goes_on": f"{link['arm']}@{link['at_step']}" if link else None,
                "solved": found.solved.get(arm, []),
                **cost,
            }
        )
    per_arm = {arm["arm"]: arm["disk_bytes"] or 0 for arm in arms}
    sweep = Path(workdir)
    disk = sum(per_arm[cell.arm] for cell in cells if not is_finished(sweep, cell.folder))
    free = free_bytes(sweep)
    return {
        "arms": arms,
        "cells": len(cells),
        "flops": sum((arm["flops"] or 0) * len(arm["seeds"]) for arm in arms),
        "disk_bytes": disk,
        "free_bytes": free,
        "fits": disk <= free,
    }


def _cost(experiment: Any, corpus: Any, before: int) -> dict[str, Any]:
    """Args: `before`: steps that a trunk has taken."""
    found = inspection.inspect(experiment, corpus)
    if found["parameters"] is None:
        none = ("parameters", "tokens", "flops", "memory_bytes", "disk_bytes")
        return dict.fromkeys(none)
    steps = found["durations"]["training.steps"] - before
    tokens = steps * experiment.training.batch_size * experiment.data.sequence_length
    per_epoch = inspection.steps_per_epoch(experiment, corpus)
    program = inspection.program_of(
        experiment, inspection.vocabulary_size(experiment, corpus), per_epoch
    )
    state = session.abstract_state(program, experiment)
    # Those that are kept, the best, and the one that is being written.
    checkpoints = experiment.checkpoint.keep + 2
    return {
        "parameters": found["parameters"]["total"],
        "tokens": tokens,
        "flops": found["flops"]["training_per_token"] * tokens,
        "memory_bytes": found["memory"]["total"],
        "disk_bytes": checkpoints * size_of(without_hyper(state)),
    }
