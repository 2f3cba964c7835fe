"""Training step of the LSTM language model against torch.nn.LSTM on the same device.

  python scripts/benchmarks/lstm.py [--threads=2] [--rounds=15]

A step is loss and gradient of everything: embedding, layers, head, cross-entropy; no optimizer, no dropout. Steps of
both sides alternate, and the ratio is of medians; on a machine that others use too, PyTorch's spinning threads suffer
more than ours and the ratio flatters us. Results go to stdout as JSON, a table to stderr.
"""

# ruff: noqa: E402 - the allocator is tuned before JAX and PyTorch are imported
import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from ablax.allocator import tune_malloc

tune_malloc()  # before JAX and PyTorch allocate

import jax
import jax.numpy as jnp
import numpy as np
import torch

from ablax.commands.output import table
from ablax.config import static, traced
from ablax.models.lstm import LstmConfig

SIZES = (  # layers, width, batch, time, vocabulary
    (2, 256, 32, 64, 2048),
    (2, 650, 20, 35, 10_000),
)
WARMUP_STEPS = 3
COLUMNS = (
    "num_layers",
    "width",
    "batch_size",
    "sequence_length",
    "vocab_size",
    "ours_ms",
    "torch_ms",
    "ratio",
)


def random_batch(batch_size: int, length: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets, int32 [B T]."""
    rng = np.random.default_rng(0)
    shape = (batch_size, length)
    tokens, targets = (rng.integers(vocab_size, size=shape, dtype=np.int32) for _ in range(2))
    return tokens, targets


def our_step(config: LstmConfig, vocab_size: int, tokens: np.ndarray, targets: np.ndarray):
    """A function that takes one step and returns the mean loss once everything is computed."""
    module = static(config).build(vocab_size, tokens.shape[1])
    hyper = jax.tree.map(jnp.float32, traced(config))
    positions = jnp.tile(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], (len(tokens), 1))
    rows = (jnp.asarray(tokens), positions, jnp.ones_like(positions))
    labels = jnp.asarray(targets)

    def loss(params):
        logits, _ = module.apply(params, *rows, hyper=hyper)
        chosen = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
        return (jax.nn.logsumexp(logits, -1) - chosen).mean()

    params = jax.jit(lambda key: module.init(key, *rows, hyper=hyper))(jax.random.key(0))
    gradient = jax.jit(jax.value_and_grad(loss))
    return lambda: float(jax.block_until_ready(gradient(params))[0])


class TorchLstm(torch.nn.Module):
    """The same model in PyTorch."""

    def __init__(self, num_layers: int, width: int, vocab_size: int):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocab_size, width)
        self.lstm = torch.nn.LSTM(width, width, num_layers)
        self.head = torch.nn.Linear(width, vocab_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B T V]."""
        return self.head(self.lstm(self.embedding(tokens.T))[0].transpose(0, 1))


def torch_step(config: LstmConfig, vocab_size: int, tokens: np.ndarray, targets: np.ndarray):
    """The same step in PyTorch, on a GPU where JAX computes on one."""
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    module = TorchLstm(config.num_layers, config.width, vocab_size).to(device)
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, -config.init_scale, config.init_scale)
    rows = torch.tensor(tokens, device=device)
    labels = torch.tensor(targets, device=device, dtype=torch.long).reshape(-1)

    def step() -> float:
        module.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(module(rows).reshape(-1, vocab_size), labels)
        loss.backward()
        return loss.item() if device == "cpu" else _synchronised(loss)

    return step


def _synchronised(loss: torch.Tensor) -> float:
    torch.cuda.synchronize()
    return loss.item()


def interleaved(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, one a round; the steps take turns so that both see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(WARMUP_STEPS + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            loss = step()
            if turn >= WARMUP_STEPS:
                times[name].append(time.perf_counter() - start)
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss of {name} is {loss}")
    return times


def measure(threads: int = 2, rounds: int = 15) -> dict[str, Any]:
    """Times every size.

    Args:
      threads: of PyTorch on a CPU; JAX takes as many as the process may use.
      rounds: timed steps of each side.

    Returns:
      A list under "lstm", one dict a size; `ratio` is ours / PyTorch's time, of the medians;
      `ratio_min` and `ratio_max` are those of single rounds.
    """
    torch.set_num_threads(threads)
    rows = []
    for layers, width, batch_size, length, vocab_size in SIZES:
        config = LstmConfig(num_layers=layers, width=width)
        arguments = (config, vocab_size, *random_batch(batch_size, length, vocab_size))
        steps = {"ours": our_step(*arguments), "torch": torch_step(*arguments)}
        times = interleaved(steps, rounds)
        seconds = {name: statistics.median(values) for name, values in times.items()}
        ratios = [ours / theirs for ours, theirs in zip(times["ours"], times["torch"], strict=True)]
        rows.append(
            {
                "num_layers": layers,
                "width": width,
                "batch_size": batch_size,
                "sequence_length": length,
                "vocab_size": vocab_size,
                "device": jax.devices()[0].device_kind,
                "ours_ms": 1e3 * seconds["ours"],
                "torch_ms": 1e3 * seconds["torch"],
                "ratio": seconds["ours"] / seconds["torch"],
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "tokens_per_second": batch_size * length / seconds["ours"],
            }
        )
    return {"lstm": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description="LSTM training step against torch.nn.LSTM")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    arguments = parser.parse_args()
    result = measure(arguments.threads, arguments.rounds)
    table("training step", COLUMNS, [[row[name] for name in COLUMNS] for row in result["lstm"]])
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
