"""What happened at a step of a run: it is made again from the newest good checkpoint before it, and looked into."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ablax.config import RequestError
from ablax.data.corpus import Corpus, open_corpus
from ablax.data.tokenizers import load_tokenizer
from ablax.experiment import resolve
from ablax.run import RunFolder
from ablax.trainer import specials_of
from ablax.training import session
from ablax.training.checkpoints import Checkpoints
from ablax.training.descent import Descent
from ablax.training.guard import NOT_FINITE, released, why_refused
from ablax.training.ledger import hash_rows
from ablax.training.masks import STACKED, parameter_path
from ablax.training.parallel import MeshEngine
from ablax.training.recorded import read_ledger
from ablax.training.recovery import NOTHING, events_of, first_not_finite, left_out_after, position
from ablax.training.state import TrainState, without_hyper
from ablax.training.step import Program

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A step that is about to be made again.

    Attributes:
      plan: the run, put together again.
      state: the state before the step.
      batch: the loader's step, from 0, that it reads.
      checkpoint: the step that it was reached from; 0 = initialisation.
    """

    plan: Descent
    state: TrainState
    batch: int
    checkpoint: int


def forensics(
    workdir: Path | str,
    step: int,
    *,
    extend: Iterable[Any] = (),
    offline: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Makes a step of a run again and says what was in it. Nothing is written.

    Args:
      step: from 1; of a step that was given up by a rewind, the way that was given up.
      extend: config classes from outside that the configuration names.
      say: takes one line of text.

    Returns:
      `step`, `checkpoint`, `loss`, `gradient_norm`, `refused` (why, or None), `first_not_finite` (where, or None),
      `rows`: documents and loss (nats per token, without dropout) of each, `layers`: norm of the gradient of each, in
      the forward order of their parameters' names; `as_recorded`: whether the ledger has the same batch, or None.

    Raises:
      RequestError: if there is no such run or step, or a step before it was refused as well.
    """
    folder = RunFolder(workdir).require()
    experiment = resolve(folder.config(), extend=list(extend), imports=False)
    if hasattr(experiment.model, "fit"):
        raise RequestError(f"{folder.path} was fitted to counts and has no steps")
    tokenizer = load_tokenizer(folder.tokenizer)
    corpus = open_corpus(
        experiment.data, specials_of(experiment), tokenizer=tokenizer, offline=offline
    )
    plan = Descent.plan(experiment, corpus)
    if not 1 <= step <= plan.clock.total:
        raise RequestError(f"--step={step} must be from 1 to {plan.clock.total}, the run's steps")
    scene = reach(plan, folder, step, say)
    program, state, loader = plan.program, scene.state, plan.loader
    batch = loader.batch(scene.batch)
    placed = plan.engine.place(batch) if isinstance(plan.engine, MeshEngine) else batch
    totals, counts = losses_by_row(plan.engine)(state, dict(batch))
    rows = _rows(totals, counts, loader.documents(scene.batch), corpus)
    gradient, sums = gradients_by(plan.engine)(state, placed)
    layers = layer_norms(gradient, float(sums.count))
    where = first_not_finite(state.params)
    first = f"parameter {where}" if where else activation_not_finite(program, state, batch)
    # The state's buffers are gone afterwards.
    after, metrics = plan.engine.step(state, batch)
    metrics = jax.tree.map(np.asarray, metrics)
    loss = float(metrics["loss"].total) / max(int(metrics["loss"].count), 1)
    if first is None and not math.isfinite(loss):
        first = "loss"
    if first is None and (bad := [row["layer"] for row in layers if not row["finite"]]):
        first = f"gradient of {bad[-1]}"
    if first is None and (where := first_not_finite(without_hyper(after))):
        first = f"the update of {where}"
    if first is None and int(metrics["refused"]) == NOT_FINITE:
        first = "the update"
    return {
        "step": step,
        "checkpoint": scene.checkpoint,
        "loss": loss,
        "gradient_norm": float(metrics["gradient_norm"]),
        "refused": why_refused(metrics),
        "first_not_finite": first,
        "as_recorded": _as_recorded(folder, step, batch, loader.first_row),
        "rows": rows,
        "layers": layers,
    }


def reach(plan: Descent, folder: RunFolder, step: int, say: Say) -> Scene:
    """Goes from the newest good checkpoint before a step to the state before it.

    Raises:
      RequestError: if a step between was refused and not skipped.
    """
    state = plan.engine.init(
        session.root_key(plan.experiment.seed), session.hyper_of(plan.experiment)
    )
    state, guard, checkpoint = _restored(state, folder, step - 1, say)
    if checkpoint == 0 and (donor := plan.donor(state, say)):
        state = donor.give(plan.program, state, say)
    events = events_of(folder)
    given_up = [
        index for index, event in enumerate(events) if event["step"] == step and "to" in event
    ]
    left_out = left_out_after(guard["left_out"], events[: given_up[0]] if given_up else events)
    skipped = {event["step"] for event in events if event["action"] == "skip"}
    for done in range(checkpoint + 1, step):
        batch = plan.loader.batch(position(done - 1, left_out))
        state, metrics = plan.engine.step(state, batch)
        if int(metrics["refused"]):
            if done not in skipped:
                raise RequestError(
                    f"step {done} is refused before step {step}: ask for --step={done}"
                )
            state = released(state, advance=True)
    return Scene(plan, state, position(step - 1, left_out), checkpoint)


def _restored(
    fresh: TrainState, folder: RunFolder, newest: int, say: Say
) -> tuple[TrainState, Mapping[str, Any], int]:
    """The newest good checkpoint up to a step, what it keeps of the guard, and its step; else the fresh state."""
    if not folder.checkpoints.is_dir():
        return fresh, NOTHING, 0
    with Checkpoints(folder.checkpoints, writer=False, say=say) as checkpoints:
        for step in reversed([one for one in checkpoints.all_steps() if one <= newest]):
            try:
                state, cursor, _ = checkpoints.restore(without_hyper(fresh), step)
            except RequestError as error:
                say(str(error))
                continue
            return dataclasses.replace(state, hyper=fresh.hyper), cursor["guard"], step
    return fresh, NOTHING, 0


def _as_recorded(
    folder: RunFolder, step: int, batch: Mapping[str, np.ndarray], first_row: int
) -> bool | None:
    try:
        hashes = read_ledger(folder.path).hashes
    except RequestError:
        return None
    if step > len(hashes):
        return None
    return int.from_bytes(hashes[step - 1], "little") == hash_rows(batch, first_row)


def gradients_by(engine: Any) -> Any:
    """A compiled function of (state, batch) on the engine's devices: gradient of the total loss, and its sums."""

    @jax.jit
    def found(state: TrainState, batch: Any) -> Any:
        with engine.over():
            return engine.program.gradients(state, batch)[:2]

    return found


def losses_by_row(engine: Any) -> Any:
    """A compiled function of (state, batch) on the engine's devices: totals and counts [B] of each row by itself."""

    @jax.jit
    def found(state: TrainState, batch: Any) -> tuple[Any, Any]:
        def one(row: Any) -> tuple[Any, Any]:
            row, carry = jax.tree.map(lambda x: x[None], row)
            loss = engine.program.loss(state.params, state.hyper, carry, None, row)[0]
            return loss.total, loss.count

        with engine.over():
            return jax.lax.map(one, (batch, state.carry))

    return found


def _rows(
    totals: Any, counts: Any, documents: Sequence[np.ndarray], corpus: Corpus
) -> list[dict[str, Any]]:
    """Loss of each row, largest and non-finite ones first, and the names of its documents."""
    losses = np.asarray(totals, float) / np.maximum(np.asarray(counts), 1)
    name = corpus.sources["train"].name
    rows = [
        {"row": row, "loss": float(loss), "documents": [name(int(i)) for i in found]}
        for row, (loss, found) in enumerate(zip(losses, documents, strict=True))
    ]
    return sorted(rows, key=lambda row: -row["loss"] if math.isfinite(row["loss"]) else -math.inf)


def layer_norms(gradient: Any, count: float) -> list[dict[str, Any]]:
    """Norm of the gradient of the mean loss, for each layer of stacked blocks and each other module.

    Args:
      gradient: of the total.
      count: what the total is divided by.
    """
    squares: dict[tuple[str, int], float] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name, values = parameter_path(path), np.asarray(leaf, np.float64) / max(count, 1)
        if re.search(STACKED, name):
            parts = {("blocks", i): layer for i, layer in enumerate(values)}
        else:
            parts = {(name.split("/")[0], -1): values}
        for key, part in parts.items():
            squares[key] = squares.get(key, 0.0) + float((part**2).sum())
    return [
        {
            "layer": name if index < 0 else f"{name} {index}",
            "gradient_norm": math.sqrt(total) if total == total else total,
            "finite": math.isfinite(total),
        }
        for (name, index), total in sorted(squares.items())
    ]


def activation_not_finite(
    program: Program, state: TrainState, batch: Mapping[str, np.ndarray]
) -> str | None:
    """The first module, in the order of the forward pass, whose output is not finite."""
    order: list[str] = []

    def note(module: Any, method: str) -> bool:
        if method == "__call__":  # asked when the call is over
            order.append("/".join(module.path))
        return method == "__call__"

    def forward(params: Any, batch: Any) -> Any:
        _, sown = program.module.apply(
            {"params": params},
            *(batch[name] for name in ("tokens", "positions", "segment_ids")),
            hyper=state.hyper.get("model", {}),
            carry=state.carry,
            capture_intermediates=note,
            mutable=["intermediates"],
        )
        return jax.tree_util.tree_map_with_path(_finite, sown["intermediates"])

    found = jax.jit(forward)(state.params, dict(batch))
    places = {name: place for place, name in reversed(list(enumerate(order)))}
    stacked = min((p for name, p in places.items() if re.search(STACKED, name)), default=0)
    bad = []
    for path, fine in jax.tree_util.tree_leaves_with_path(found):
        name = _module_of(path)
        inside = bool(re.search(STACKED, name))
        for index in np.flatnonzero(~np.atleast_1d(np.asarray(fine))):
            place = places.get(name, len(order))
            label = f"output of {name or 'the model'}" + (f", layer {index}" if inside else "")
            bad.append(((stacked, int(index), place) if inside else (place, 0, 0), label))
    return min(bad)[1] if bad else None


def _finite(path: Any, leaf: Any) -> Any:
    """Whether an output is finite; of stacked blocks, for each layer."""
    axes = tuple(range(1, leaf.ndim)) if re.search(STACKED, _module_of(path)) else None
    return jnp.isfinite(leaf).all(axis=axes)


def _module_of(path: Any) -> str:
    names = [str(getattr(key, "key", "")) for key in path]
    return "/".join(name for name in names if name and name not in ("__call__", "output"))
