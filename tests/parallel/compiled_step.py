"""Compiles the training step of a tiny model over eight faked devices and prints its collectives as JSON.

Run in a process of its own, as `compare_engines.py`.
"""

import json
import sys

import jax

from ablax.experiment import base, resolve
from ablax.topology import each_collective
from ablax.training import session
from ablax.training.parallel import MeshEngine
from parallel.compare_engines import FAMILIES, LENGTH, ROWS, engine_of

LAYERS, WIDTH = 3, 32


def main(family: str, *layout: str) -> None:
    kinds, knobs = FAMILIES[family]
    axes = dict(item.split("=") for item in layout)
    experiment = resolve(
        base(**kinds),
        {
            **knobs,
            "model.num_layers": LAYERS,
            "model.width": WIDTH,
            "data.sequence_length": LENGTH,
            "training.batch_size": ROWS,
            "training.steps": 5,
            "schedule.warmup": 1,
            **{f"parallel.{axis}": int(size) for axis, size in axes.items()},
        },
    )
    engine = engine_of(experiment, 5)
    assert isinstance(engine, MeshEngine)
    program = engine.lower(session.root_key(0), session.hyper_of(experiment)).compile().as_text()
    state = session.abstract_state(engine.program, experiment)
    largest = max(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    print(json.dumps({"collectives": list(each_collective(program)), "largest": largest}))


if __name__ == "__main__":
    main(*sys.argv[1:])
