"""Trains a tiny model of one family for five steps on one device, on a mesh and with pmap; prints losses as JSON.

Run in a process of its own with eight faked devices in XLA_FLAGS, because JAX counts its devices once.
"""

import dataclasses
import json
import sys
import tempfile

import jax
import numpy as np

from ablax.experiment import base, resolve
from ablax.training import session
from ablax.training.checkpoints import Checkpoints
from ablax.training.parallel import ENGINES
from ablax.training.state import without_hyper

SMALL = {"model.num_layers": 1, "model.width": 16, "model.num_heads": 2}
FAMILIES = {
    "decoder": ({"model": "decoder"}, SMALL),
    "encoder": ({"model": "encoder", "objective": "masked"}, SMALL),
    "lstm": (
        {"model": "lstm"},
        {"model.num_layers": 2, "model.width": 16, "data.layout": "streams"},
    ),
}
VOCABULARY, LENGTH, ROWS = 40, 12, 16


def batches(spec):
    """Five random batches; the first starts its streams, the others go on."""
    rng = np.random.default_rng(0)
    for step in range(5):
        batch = {
            name: rng.integers(1, VOCABULARY, s.shape).astype(s.dtype) for name, s in spec.items()
        }
        positions = np.arange(LENGTH, dtype=np.int32) + step * LENGTH
        batch["positions"] = np.broadcast_to(positions % LENGTH, (ROWS, LENGTH)).copy()
        batch["segment_ids"] = np.ones((ROWS, LENGTH), np.int32)
        batch["loss_weights"] = (rng.random((ROWS, LENGTH)) < 0.7).astype(np.float32)
        yield batch


def run(experiment, engine_name: str, count: int):
    """Losses of five steps and the final parameters; on several devices the state goes through a checkpoint."""
    clock = session.Clock(5, ROWS * LENGTH, 1.0)
    program = session.build_program(experiment, VOCABULARY, clock)
    engine = ENGINES[engine_name](program, jax.devices()[:count])
    state = engine.init(session.root_key(0), session.hyper_of(experiment))
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), state)
    losses = []
    for number, batch in enumerate(batches(program.spec)):
        if number == 2 and count > 1:
            state = saved_and_restored(state, engine, experiment)
        state, metrics = engine.step(state, batch)
        loss = jax.device_get(metrics["loss"])  # one step at a time: two programs in flight at most
        losses.append(float(loss.total) / int(loss.count))
    assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), state) == shapes, (
        "the state changed its form"
    )
    return losses, jax.device_get(state.params)


def saved_and_restored(state, engine, experiment):
    """The state as a resumed run finds it."""
    hyper = session.hyper_of(experiment)
    template = engine.template(session.root_key(0), hyper)
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        checkpoints.save(int(state.step), without_hyper(state), {}, {})
        restored, _, _ = checkpoints.restore(without_hyper(template))
    return dataclasses.replace(restored, hyper=hyper)


def main(family: str) -> None:
    kinds, knobs = FAMILIES[family]
    fixed = {
        "data.sequence_length": LENGTH,
        "training.batch_size": ROWS,
        "training.steps": 5,
        "schedule.warmup": 1,
        "optimizer.learning_rate": 1e-2,
    }
    experiment = resolve(base(**kinds), {**fixed, **knobs})
    halves = resolve(base(**kinds), {**fixed, **knobs, "training.accumulation": 2})
    one, params = run(experiment, "mesh", 1)
    results = {"one": one}
    for name, which, engine, count in [
        ("mesh", experiment, "mesh", 8),
        ("pmap", experiment, "pmap", 8),
        ("accumulated", halves, "mesh", 4),
    ]:
        losses, other = run(which, engine, count)
        worst = max(
            float(np.abs(a - b).max())
            for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other))
        )
        results |= {name: losses, f"{name}_parameters": worst}
    if family == "decoder":
        dropped = {**fixed, **knobs, "model.residual_dropout": 0.2, "model.attention_dropout": 0.2}
        for name, count in (("dropout_one", 1), ("dropout_mesh", 8)):
            results[name], _ = run(resolve(base(**kinds), dropped), "mesh", count)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
