"""Trains a tiny model of one family on one device and over several layouts; prints losses as JSON.

Run in a process of its own with eight faked devices in XLA_FLAGS, because JAX counts its devices once.
"""

import argparse
import dataclasses
import json
import tempfile

import jax
import numpy as np

from ablax.experiment import base, resolve
from ablax.training import session
from ablax.training.checkpoints import Checkpoints
from ablax.training.state import without_hyper

SMALL = {"model.width": 16, "model.num_heads": 2, "model.unroll": 1}
FAMILIES = {
    "decoder": ({"model": "decoder"}, SMALL),
    "encoder": ({"model": "encoder", "objective": "masked"}, SMALL),
    "lstm": (
        {"model": "lstm"},
        {"model.width": 16, "data.layout": "streams"},
    ),
}
LAYOUTS = {
    "one": {"data": 1},
    "data 8": {"data": 8},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "data 2 fsdp 2 tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "data 2 sequence 4": {"data": 2, "sequence": 4},
    "pmap 8": {"engine": "pmap"},
}
VOCABULARY, LENGTH, ROWS = 40, 12, 16
COMPILED = []
"""Seconds of each program that was compiled."""


def count_compilations(event, duration_secs, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(count_compilations)


def batches(spec, steps):
    """Random batches; the first starts its streams, the others go on."""
    rng = np.random.default_rng(0)
    for step in range(steps):
        batch = {
            name: rng.integers(1, VOCABULARY, s.shape).astype(s.dtype) for name, s in spec.items()
        }
        positions = np.arange(LENGTH, dtype=np.int32) + step * LENGTH
        batch["positions"] = np.broadcast_to(positions % LENGTH, (ROWS, LENGTH)).copy()
        batch["segment_ids"] = np.ones((ROWS, LENGTH), np.int32)
        batch["loss_weights"] = (rng.random((ROWS, LENGTH)) < 0.7).astype(np.float32)
        yield batch


def run(engine, experiment, steps, state=None):
    """Losses and final parameters, from a state on one device (which saves compiling `init`) or from a fresh one."""
    hyper = session.hyper_of(experiment)
    if state is None:
        state = engine.init(session.root_key(0), hyper)
    else:
        state = dataclasses.replace(state, hyper=hyper)
        template = engine.template(session.root_key(0), hyper)
        state = jax.tree.map(
            lambda x, like: jax.device_put(np.array(x), like.sharding), state, template
        )
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), state)
    losses, compiled = [], []
    for batch in batches(engine.program.spec, steps):
        state, metrics = engine.step(state, batch)
        loss = jax.device_get(metrics["loss"])  # one step at a time: two programs in flight at most
        losses.append(float(loss.total) / int(loss.count))
        compiled.append(len(COMPILED))
    assert compiled[0] == compiled[-1], "the step was compiled again for the state that it gave"
    assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), state) == shapes, (
        "the state changed its form"
    )
    return losses, jax.device_get(state.params)


def engine_of(experiment, steps):
    """The engine that a run of this experiment would use."""
    clock = session.Clock(steps, ROWS * LENGTH, 1.0)
    program = session.build_program(experiment, VOCABULARY, clock)
    return session.build_engine(experiment, program)


def travelled(engines, experiment, steps):
    """Losses of one run that goes through a checkpoint to another layout after each step."""
    losses = []
    state = engines[0].init(session.root_key(0), session.hyper_of(experiment))
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        for number, batch in enumerate(batches(engines[0].program.spec, steps)):
            engine = engines[number % len(engines)]
            if number:
                hyper = session.hyper_of(experiment)  # the step before took its buffers
                template = engine.template(session.root_key(0), hyper)
                restored, _, _ = checkpoints.restore(without_hyper(template))
                # Placed as `run` places it: the step that is compiled already is made.
                placed = jax.tree.map(
                    lambda x, like: jax.device_put(x, like.sharding), hyper, template.hyper
                )
                state = dataclasses.replace(restored, hyper=placed)
            state, metrics = engine.step(state, batch)
            loss = jax.device_get(metrics["loss"])
            losses.append(float(loss.total) / int(loss.count))
            checkpoints.save(int(state.step), without_hyper(state), {}, {})
    return losses


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("steps", type=int)
    parser.add_argument("--layers", type=int, default=1)
    args = parser.parse_args()
    kinds, knobs = FAMILIES[args.family]
    fixed = {
        "model.num_layers": args.layers,
        "data.sequence_length": LENGTH,
        "training.batch_size": ROWS,
        "training.steps": args.steps,
        "schedule.warmup": 1,
        "optimizer.learning_rate": 1e-2,
    }

    def resolved(layout, **others):
        layout = {f"parallel.{name}": value for name, value in layout.items()}
        return resolve(base(**kinds), {**fixed, **knobs, **layout, **others})

    lstm = args.family == "lstm"
    names = [name for name in LAYOUTS if not (lstm and "sequence" in name)]
    experiments = {name: resolved(LAYOUTS[name]) for name in names}
    engines = {name: engine_of(experiment, args.steps) for name, experiment in experiments.items()}
    initial = jax.device_get(
        engines["one"].init(session.root_key(0), session.hyper_of(experiments["one"]))
    )
    runs = {
        # One of them starts afresh: initial values must not depend on the mesh either.
        name: run(
            engines[name], experiments[name], args.steps, None if name == "fsdp 8" else initial
        )
        for name in names
    }
    if lstm:  # the family with a carry, which is split like the rows
        halves = resolved({"data": 4}, **{"training.accumulation": 2})
        runs["accumulated"] = run(engine_of(halves, args.steps), halves, args.steps, initial)
    reference = jax.tree.leaves(runs["one"][1])
    results = {
        name: {
            "losses": losses,
            "parameters": max(
                float(np.abs(a - b).max())
                for a, b in zip(reference, jax.tree.leaves(params), strict=True)
            ),
        }
        for name, (losses, params) in runs.items()
    }
    journey = travelled(list(engines.values()), experiments["one"], args.steps)
    results["travelled"] = {"losses": journey}
    if args.family == "decoder":
        dropped = {"model.residual_dropout": 0.2, "model.attention_dropout": 0.2}
        for name in ("one", "data 2 fsdp 2 tensor 2"):
            experiment = resolved(LAYOUTS[name], **dropped)
            losses, _ = run(engine_of(experiment, args.steps), experiment, args.steps, initial)
            results[f"dropout on {name}"] = {"losses": losses}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
