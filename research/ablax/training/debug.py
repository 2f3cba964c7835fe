"""`--debug`: overfit one batch, with a trap for NaN, before a long run is paid for."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from ablax.config import Duration
from ablax.data.corpus import Corpus
from ablax.run import RunFailed
from ablax.training import session
from ablax.training.schedules import ConstantConfig

STEPS = 200
WARMUP = Duration("5%")
SHARE = 0.5


class NotOverfit(RunFailed):
    """The model did not learn one batch by heart."""


def overfit(experiment: Any, corpus: Corpus, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains on the first batch, at the peak learning rate after a short warm-up, until its loss has halved.

    Args:
      experiment: resolved.
      say: takes messages.

    Returns:
      `first`, `last` (nats per token), `steps`, `seconds`.

    Raises:
      NotOverfit: if the loss did not halve in STEPS steps.
      FloatingPointError: where a NaN arose.
    """
    # The run's own warm-up may be longer than all of this.
    experiment = dataclasses.replace(experiment, schedule=ConstantConfig(WARMUP))
    loader = session.training_loader(experiment, corpus)
    clock = session.Clock(STEPS, loader.tokens_per_step, loader.steps_per_epoch)
    program = session.build_program(experiment, corpus.tokenizer.vocab_size, clock)
    engine = session.build_engine(experiment, program)
    batch, first, began = loader.batch(0), None, time.perf_counter()
    with jax.debug_nans(True):
        state = engine.init(session.root_key(experiment.seed), session.hyper_of(experiment))
        for step in range(1, STEPS + 1):
            state, metrics = engine.step(state, batch)
            loss = jax.device_get(metrics["loss"])
            value = float(loss.total) / max(int(loss.count), 1)
            first = value if first is None else first
            if value <= SHARE * first:
                say(
                    f"debug: loss of one batch went from {first:.3f} to {value:.3f} in {step} steps"
                )
                return {
                    "first": first,
                    "last": value,
                    "steps": step,
                    "seconds": time.perf_counter() - began,
                }
    raise NotOverfit(
        f"the loss of one batch went from {first:.3f} to {value:.3f} in {STEPS} steps and did not halve; "
        "raise optimizer.learning_rate, or look for a bug in the model"
    )
