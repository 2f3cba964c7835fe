"""The coordinate check: whether what a step changes is of one size at every width (Yang et al. 2022, appendix D.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ablax.experiment import Experiment, resolve
from ablax.inspection import program_of
from ablax.objectives.batch import Vocabulary
from ablax.training import session
from ablax.training.step import Program

VOCABULARY = 64


def changes(
    experiment: Experiment, arms: Sequence[Mapping[str, Any]], steps: int = 4
) -> list[dict[str, float]]:
    """How much training changes each layer's output and the logits: mean absolute difference from the first ones.

    One random batch, `steps` times, at a constant learning rate and without clipping.

    Args:
      experiment: of a Transformer; its data are not opened.
      arms: overrides that widen the model, as `{"model.width": 256}`.

    Returns:
      For each arm: `block 0`, ..., `logits` -> size of the change.
    """
    usual = {"schedule": "constant", "schedule.warmup": 0, "training.clip_norm": None}
    return [_changes(resolve(experiment, {**usual, **arm}), steps) for arm in arms]


def slopes(widths: Sequence[float], sizes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The exponent with which each size grows with the width, by least squares: 0 in muP, above it where wide models
    change too much.
    """
    logs = np.log(np.asarray(widths, float))
    return {
        name: float(np.polyfit(logs, np.log([size[name] for size in sizes]), 1)[0])
        for name in sizes[0]
    }


def _changes(experiment: Experiment, steps: int) -> dict[str, float]:
    program = program_of(experiment, VOCABULARY, None)
    hyper, key = session.hyper_of(experiment), session.root_key(experiment.seed)
    state = jax.jit(program.init)(key, hyper)
    batch = _batch(experiment)
    watch, step = jax.jit(lambda state: _outputs(program, state, batch)), jax.jit(program.step)
    before = watch(state)
    for _ in range(steps):
        state, _ = step(state, batch)
        jax.block_until_ready(state)
    sizes = jax.tree.map(lambda a, b: float(jnp.abs(a - b).mean()), watch(state), before)
    return dict(sizes)


def _outputs(program: Program, state: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    (logits, _), sown = program.module.apply(
        {"params": state.params},
        *(batch[name] for name in ("tokens", "positions", "segment_ids")),
        hyper=state.hyper["model"],
        mutable=["intermediates"],
    )
    (outputs,) = sown["intermediates"]["blocks"]["output"]
    return {**{f"block {i}": x for i, x in enumerate(outputs)}, "logits": logits}


def _batch(experiment: Experiment) -> dict[str, jax.Array]:
    rng = np.random.default_rng(experiment.seed)
    length = experiment.data.sequence_length
    vocabulary = Vocabulary(
        VOCABULARY, np.arange(VOCABULARY) == 0, np.ones(VOCABULARY, bool), mask=0
    )
    places = np.arange(length + 1, dtype=np.int32)
    rows = []
    for _ in range(experiment.training.batch_size):
        tokens = rng.integers(1, VOCABULARY, length + 1).astype(np.int32)
        row = {"tokens": tokens, "positions": places, "segment_ids": np.ones_like(places)}
        rows.append(experiment.objective.transform(row, rng, vocabulary))
    return {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}
