"""Trains a tiny mixture of experts on one device and over meshes; prints losses and collectives as JSON.

Run in a process of its own with faked devices in XLA_FLAGS; the layouts to compare are its arguments.
"""

import json
import sys

import jax
import numpy as np

from ablax.experiment import base, resolve
from ablax.topology import collectives
from ablax.training import session
from ablax.training.parallel import MeshEngine
from parallel.compare_engines import LENGTH, ROWS, engine_of, run

STEPS = 3
LAYOUTS = {
    "one": {"data": 1},
    "data 2 expert 2": {"data": 2, "expert": 2},
    "expert 4": {"data": 1, "expert": 4},
    "fsdp 2 expert 2": {"data": 1, "fsdp": 2, "expert": 2},
    "expert 2 tensor 2": {"data": 1, "expert": 2, "tensor": 2},
    "expert 2 sequence 2": {"data": 1, "expert": 2, "sequence": 2},
    "pmap 4": {"engine": "pmap"},
}
DROPLESS = {
    "dropless on one": {"data": 1},
    "dropless on data 2 fsdp 2": {"data": 2, "fsdp": 2},
    "dropless on sequence 2": {"data": 2, "sequence": 2},
}


def main() -> None:
    fixed = {
        "model.num_layers": 1,
        "model.width": 16,
        "model.num_heads": 2,
        "model.unroll": 1,
        "model.feedforward.kind": "experts",
        "model.feedforward.num_experts": 4,
        "data.sequence_length": LENGTH,
        "training.batch_size": ROWS,
        "training.steps": STEPS,
        "schedule.warmup": 1,
        "optimizer.learning_rate": 1e-2,
    }
    results = {}
    initial = None
    for name in sys.argv[1:]:
        layout = {f"parallel.{axis}": n for axis, n in {**LAYOUTS, **DROPLESS}[name].items()}
        factor = None if name in DROPLESS else 0.75
        given = {**fixed, **layout, "model.feedforward.capacity_factor": factor}
        experiment = resolve(base(), given)
        engine = engine_of(experiment, STEPS)
        if initial is None:
            key, hyper = session.root_key(0), session.hyper_of(experiment)
            initial = jax.device_get(engine.init(key, hyper))
        losses, params = run(engine, experiment, STEPS, initial)
        found = {
            "losses": losses,
            "router": np.ravel(params["blocks"]["experts"]["router"]["kernel"])[:8].tolist(),
        }
        if isinstance(engine, MeshEngine) and engine.mesh.size > 1:
            lowered = engine.lower(session.root_key(0), session.hyper_of(experiment))
            found["collectives"] = sorted(collectives(lowered.compile().as_text()))
        results[name] = found
    print(json.dumps(results))


if __name__ == "__main__":
    main()
