"""Scores a batch with a tiny model of one family on one device and over several layouts; prints what it cost as JSON.

Run in a process of its own, as `compare_engines.py`.
"""

import json
import sys

import numpy as np

from ablax.evaluation.scoring import initial_carry, score_batch
from ablax.experiment import base, resolve
from ablax.training import session
from parallel.compare_engines import FAMILIES, LAYOUTS, LENGTH, ROWS, batches, engine_of

EXPERTS = {
    "model.feedforward.kind": "experts",
    "model.feedforward.num_experts": 4,
    "model.feedforward.capacity_factor": 1.25,
}
SPREAD = {"data": 1, "expert": 4, "tensor": 2}
KNOBS = {
    "model.num_layers": 1,
    "data.sequence_length": LENGTH,
    "training.batch_size": ROWS,
    "training.steps": 1,
    "schedule.warmup": 1,
}


def score(engine, experiment):
    """Nats [B T] of a batch, and operations of the program on one device."""
    hyper = session.hyper_of(experiment)
    state = engine.init(session.root_key(0), hyper)
    (batch,) = batches(engine.program.spec, 1)
    inputs = {name: batch[name][:8] for name in ("tokens", "targets", "positions", "segment_ids")}
    module = engine.program.module
    arguments = state.params, state.hyper["model"], inputs, initial_carry(module, 8)
    compiled = score_batch.lower(module, *arguments, engine.over).compile()
    nats, correct, _ = compiled(*arguments)
    assert nats.is_fully_replicated
    assert correct.is_fully_replicated
    cost = compiled.cost_analysis()
    assert cost is not None
    return np.asarray(nats), cost["flops"]


def main(family: str) -> None:
    kinds, knobs = FAMILIES["decoder" if family == "experts" else family]
    layouts = {
        name: LAYOUTS[name] for name in ("one", "data 8", "data 2 fsdp 2 tensor 2", "pmap 8")
    }
    if family == "experts":
        knobs = {**knobs, **EXPERTS}
        layouts = {"one": LAYOUTS["one"], "expert 4 tensor 2": SPREAD}
    found = {}
    for name, axes in layouts.items():
        layout = {f"parallel.{axis}": size for axis, size in axes.items()}
        experiment = resolve(base(**kinds), {**KNOBS, **knobs, **layout})
        found[name] = score(engine_of(experiment, 1), experiment)
    nats, flops = found["one"]
    results = {
        name: {"off": float(np.abs(other - nats).max()), "share": cost / flops}
        for name, (other, cost) in found.items()
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
