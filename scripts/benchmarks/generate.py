"""Greedy decoding against `generate` of Hugging Face transformers: GPT-2's shape, random weights, one machine.

  python scripts/benchmarks/generate.py [--threads=2] [--rounds=5] [--new=64] [--quick]

Both sides read prompts of 32 tokens and add the same number, with a key/value cache, in float32. They take turns; a
ratio is the median of the rounds' own. PyTorch's spinning threads suffer more from others on the machine than ours, so
that a ratio taken under load flatters us. Results go to stdout as JSON, a table to stderr.
"""

# ruff: noqa: E402 - the allocator is tuned before JAX and PyTorch are imported
import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from ablax.allocator import tune_malloc

tune_malloc()  # before JAX and PyTorch allocate

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from ablax.commands.output import table
from ablax.config import static, traced
from ablax.generation.loop import Compiled
from ablax.generation.samplers import row_keys
from ablax.generation.sampling import Sampling
from ablax.models.transformer import DecoderConfig

PROMPT = 32
BATCHES = (1, 8)
COLUMNS = ("batch", "ours", "theirs", "ratio", "ratio_min", "ratio_max")


def sizes(quick: bool) -> dict[str, int]:
    """L, N, D, V and positions: GPT-2's of 124M parameters, or tiny ones."""
    full = {"layers": 12, "heads": 12, "width": 768, "vocab": 50_257, "length": 1024}
    return {**full, "layers": 1, "heads": 2, "width": 32, "vocab": 65} if quick else full


def our_side(shape: dict[str, int], prompts: list[list[int]], new: int) -> Callable[[], None]:
    """A function that decodes `new` tokens behind each prompt."""
    config = DecoderConfig(
        num_layers=shape["layers"], num_heads=shape["heads"], width=shape["width"]
    )
    module = static(config).build(shape["vocab"], shape["length"])
    hyper = jax.tree.map(jnp.float32, traced(config))
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = functools.partial(module.init, hyper=hyper)
    params = jax.jit(init)(jax.random.key(0), tokens, tokens, tokens + 1)["params"]
    engine = Compiled(module, params, hyper, shape["vocab"], shape["length"])
    rows = len(prompts)
    keys, controls = (
        row_keys(0, np.arange(rows), np.zeros(rows)),
        Sampling(temperature=0).controls(),
    )

    def run() -> None:
        counts = engine.decode(prompts, keys, controls, new).counts
        assert (counts == new).all()

    return run


def their_side(shape: dict[str, int], prompts: list[list[int]], new: int) -> Callable[[], None]:
    """The same by transformers."""
    config = transformers.GPT2Config(
        vocab_size=shape["vocab"],
        n_positions=shape["length"],
        n_embd=shape["width"],
        n_layer=shape["layers"],
        n_head=shape["heads"],
        bos_token_id=0,
        eos_token_id=0,
    )
    model: Any = transformers.GPT2LMHeadModel(config).eval()
    inputs = torch.tensor(prompts)
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    def run() -> None:
        with torch.inference_mode():
            found = model.generate(inputs, attention_mask=torch.ones_like(inputs), **options)
        assert found.shape[1] == PROMPT + new

    return run


def seconds(run: Callable[[], None]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(shape: dict[str, int], batch: int, new: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of both sides, medians over rounds in which they take turns."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, shape["vocab"], (batch, PROMPT)).tolist()
    sides = [side(shape, prompts, new) for side in (our_side, their_side)]
    for run in sides:
        run()  # compiles, and touches the weights
    times = [[seconds(run) for run in sides] for _ in range(rounds)]
    ours, theirs = ([batch * new / spent for spent in side] for side in zip(*times, strict=True))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "batch": batch,
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=64, help="tokens that are added (default 64)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    shape = sizes(arguments.quick)
    found = [measure(shape, batch, arguments.new, arguments.rounds) for batch in BATCHES]
    table(
        "tokens per second",
        COLUMNS,
        [[case[name] for name in COLUMNS] for case in found],
        [f"load {load:.2f} before"],
    )
    print(json.dumps({"generate": found, "load_before": load}, indent=2))


if __name__ == "__main__":
    main()
