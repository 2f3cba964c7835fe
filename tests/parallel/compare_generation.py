"""Generates with a tiny model on one device and over a mesh; prints how they differ as JSON.

Run in a process of its own, as `compare_engines.py`.
"""

import functools
import json

import jax
import numpy as np

from ablax.generation import loop
from ablax.generation.beams import Beams
from ablax.generation.samplers import row_keys
from ablax.generation.sampling import Sampling
from ablax.models.transformer import DecoderConfig
from ablax.training.parallel import ParallelConfig, layout_of
from tiny_models import build

LAYOUT = {"data": 2, "fsdp": 2, "tensor": 2}
SHAPE = {"num_layers": 1, "width": 16, "num_heads": 2, "unroll": 1}
PROMPTS = [list(range(4, 4 + length)) for length in (1, 3, 9, 12, 5, 2, 7, 4)]
WORK = []
"""Operations of each program on one device."""


def counted(program):
    """The program, which also tells what it costs."""

    @functools.wraps(program)
    def call(*arguments, **sizes):
        compiled = program.lower(*arguments, **sizes).compile()
        WORK.append(compiled.cost_analysis()["flops"])
        # Without what is static: the model, and what makes contexts.
        return compiled(*(value for value in arguments[1:] if not callable(value)))

    return call


def said(engine):
    """Everything that it says."""
    keys = row_keys(0, np.arange(8), np.zeros(8))
    WORK.clear()
    drawn = engine.decode(PROMPTS, keys, Sampling(top_p=0.9).controls([5]), 12)
    found = engine.search(PROMPTS[:4], Sampling(temperature=0).controls([5]), 8, Beams(2))
    read = engine.read(PROMPTS)
    return {
        "texts": [drawn.tokens.tolist(), found.tokens.tolist()],
        "numbers": [*drawn.log_probs.ravel(), *found.scores, *read.log_probs.ravel()],
        "work": tuple(WORK),
    }


def main() -> None:
    loop._start, loop._search = counted(loop._start), counted(loop._search)
    model = build(DecoderConfig(**SHAPE))
    one = loop.Compiled(model.module, model.params, model.hyper, 17, 64)
    expected = said(one)
    layout = layout_of(ParallelConfig(**LAYOUT), jax.devices())
    params = layout.put(model.params)
    found = said(loop.Compiled(model.module, params, model.hyper, 17, 64, over=layout))
    kernel = params["blocks"]["mlp"]["in"]["kernel"]
    results = {
        "same": found["texts"] == expected["texts"],
        "off": float(np.abs(np.subtract(found["numbers"], expected["numbers"])).max()),
        "shares": np.divide(found["work"], expected["work"]).tolist(),
        "parts": kernel.size // kernel.addressable_shards[0].data.size,
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
