"""Trains three members on one device and over several, and prints their losses as JSON.

Run in a process of its own, as `compare_engines.py`.
"""

import json

import jax
import jax.numpy as jnp

from ablax.experiment import base, resolve
from ablax.training import session
from ablax.training.members import Members
from ablax.training.seat import Wish
from parallel.compare_engines import FAMILIES, LENGTH, ROWS, VOCABULARY, batches

STEPS, COUNT = 3, 3


def main() -> None:
    kinds, knobs = FAMILIES["lstm"]
    fixed = {
        "model.num_layers": 1,
        "data.sequence_length": LENGTH,
        "training.batch_size": ROWS,
        "training.steps": STEPS,
        "schedule.warmup": 1,
    }
    rates = (1e-2, 2e-2, 3e-2)
    experiments = [
        resolve(base(**kinds), {**fixed, **knobs, "optimizer.learning_rate": rate, "seed": seed})
        for seed, rate in enumerate(rates)
    ]
    clock = session.Clock(STEPS, ROWS * LENGTH, 1.0)
    program = session.build_program(experiments[0], VOCABULARY, clock)
    engine = session.build_engine(experiments[0], program, jax.devices()[:1])
    hypers = [session.hyper_of(one) for one in experiments]
    template = engine.template(session.root_key(0), hypers[0])
    states = [engine.init(session.root_key(i), hyper) for i, hyper in enumerate(hypers)]
    found = {}
    for devices in (1, 2):
        members = Members(program, template, COUNT, jax.devices()[:devices])
        for index, state in enumerate(states):
            members.put(index, jax.tree.map(jnp.copy, state))  # which is used up
        losses = []
        for number, batch in enumerate(batches(program.spec, STEPS)):
            going = range(COUNT - 1) if number == STEPS - 1 else range(COUNT)
            shares = members.step({index: Wish(batch) for index in going})
            losses.append([float(share["loss"].total) for share in shares.values()])
            if number == STEPS - 2:
                members.freeze(COUNT - 1)
        last = [int(members.take(index).step) for index in range(COUNT)]
        found[devices] = {"losses": losses, "steps": last, "places": members.places}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
