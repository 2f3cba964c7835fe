"""Lowers what surrounds a step with splash attention for TPUs that are not here; prints which have the kernel.

Run in a process of its own, which can compile for TPUs.
"""

import json

import jax

from ablax.evaluation.scoring import score_batch
from ablax.experiment import base, resolve
from ablax.forensics import gradients_by as forensics
from ablax.forensics import losses_by_row
from ablax.topology import devices_of
from ablax.training import session
from ablax.training.canary import ROWS, gradients_by
from ablax.training.parallel import build

LENGTH = 128
KNOBS = {
    "data.sequence_length": LENGTH,
    "model.num_layers": 1,
    "model.width": 256,
    "model.num_heads": 2,
    "model.attention_kernel": "splash",
    "training.batch_size": 8,
    "training.steps": 1,
    "schedule.warmup": 1,
    "parallel.data": 2,
    "parallel.fsdp": 4,
}


def main() -> None:
    experiment = resolve(base(), KNOBS)
    program = session.build_program(experiment, 512, session.Clock(1, 8 * LENGTH, 1.0))
    engine = build(experiment.parallel, program, devices_of("v5e:2x4"))
    state = engine.template(session.root_key(0), session.hyper_of(experiment))

    def rows(count):
        return {
            name: jax.ShapeDtypeStruct((count, LENGTH), spec.dtype)
            for name, spec in program.spec.items()
        }

    inputs = {name: leaf for name, leaf in rows(8).items() if name != "loss_weights"}
    canary = gradients_by(program, "splash", "float32", engine.over)
    model = state.hyper["model"]
    lowered = {
        "evaluation": score_batch.lower(
            program.module, state.params, model, inputs, (), engine.over
        ),
        "forensics": forensics(engine).lower(state, rows(8)),
        "forensics of rows": losses_by_row(engine).lower(state, rows(8)),
        "canary": canary.lower(state.params, state.hyper, rows(ROWS)),
    }
    print(json.dumps({name: "tpu_custom_call" in x.as_text() for name, x in lowered.items()}))


if __name__ == "__main__":
    main()
