"""The two halves of the step: one division, one key per step and micro-batch."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.objectives.causal import CausalConfig
from ablax.training.guard import why_refused
from ablax.training.optimizers import OPTIMIZERS
from ablax.training.settings import TrainingConfig
from ablax.training.state import scalars
from ablax.training.step import Program

VOCABULARY, SHAPE = 5, (4, 3)


class Bigram(nn.Module):
    """A table of logits, with a drawn number added while training so that keys can be seen."""

    @nn.compact
    def __call__(self, tokens, positions, segment_ids, *, hyper, carry=(), train=False):
        table = self.param("kernel", nn.initializers.normal(1.0), (VOCABULARY, VOCABULARY))
        logits = table[tokens]
        if train:
            noise = jax.random.normal(self.make_rng("dropout"), logits.shape)
            logits = logits + hyper["noise"] * noise
        return logits, carry


def program(noise: float = 0.0, **config) -> tuple[Program, dict]:
    objective = CausalConfig()
    sgd = OPTIMIZERS["sgd"]()
    hyper = {
        "model": {"noise": noise},
        "optimizer": {"learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0},
    }
    made = Program(
        module=Bigram(),
        objective=objective,
        optimizer=sgd,
        schedule=lambda hyper, step: jnp.float32(1),
        config=TrainingConfig(clip_norm=None, **config),
        spec=objective.batch_spec(*SHAPE),
    )
    return made, scalars(hyper)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    rows = {
        name: rng.integers(0, VOCABULARY, SHAPE).astype(np.int32) for name in ("tokens", "targets")
    }
    rows |= {"positions": np.zeros(SHAPE, np.int32), "segment_ids": np.ones(SHAPE, np.int32)}
    rows["loss_weights"] = (np.arange(12) % 3 != 0).astype(np.float32).reshape(SHAPE)
    return {name: jnp.asarray(value) for name, value in rows.items()}


def start(made: Program, hyper):
    return made.init(jax.random.key_data(jax.random.key(0)), hyper)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_update_is_the_gradient_of_the_mean(batch, parts):
    """Catches a sum that is not divided, a division per micro-batch, and a count of all positions."""
    made, hyper = program(accumulation=parts)
    state = start(made, hyper)

    def mean(params):
        logits, _ = made.module.apply(
            {"params": params}, batch["tokens"], None, None, hyper={"noise": 0.0}
        )
        nats = -jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(nats, batch["targets"][..., None], -1)[..., 0]
        return (chosen * batch["loss_weights"]).sum() / batch["loss_weights"].sum()

    expected = jax.tree.map(lambda p, g: p - g, state.params, jax.grad(mean)(state.params))
    after, metrics = made.step(state, batch)
    # float32 sums in another order; entries near 0 by cancellation.
    np.testing.assert_allclose(after.params["kernel"], expected["kernel"], rtol=1e-5, atol=1e-6)
    assert int(metrics["loss"].count) == 8


def test_every_step_and_micro_batch_draws_anew(batch):
    """Catches a key that forgets the step, and one that micro-batches share."""
    made, hyper = program(noise=1.0)
    state = start(made, hyper)
    later = dataclasses.replace(state, step=state.step + 1)
    first, second = (made.gradients(s, batch)[1].total for s in (state, later))
    assert first != second
    halves, hyper = program(noise=1.0, accumulation=2)
    same = {name: jnp.repeat(rows[:2], 2, axis=0) for name, rows in batch.items()}
    shared = halves.gradients(state, same)[1].total
    one, _ = program(noise=1.0)
    alone = one.gradients(state, {name: rows[:2] for name, rows in batch.items()})[1].total
    assert shared != 2 * alone


def test_the_average_follows_the_parameters(batch):
    """Catches an average that is updated before the parameters, or with the decay and its complement swapped."""
    made, hyper = program(ema_decay=0.75)
    state = start(made, hyper)
    after, _ = made.step(state, batch)
    expected = 0.75 * state.params["kernel"] + 0.25 * after.params["kernel"]
    np.testing.assert_allclose(after.ema["kernel"], expected, rtol=1e-6)  # roundings of float32
    np.testing.assert_array_equal(made.evaluation_params(after)["kernel"], after.ema["kernel"])


def test_a_step_of_infinite_length_is_not_applied(batch):
    """Catches: a guard that looks at loss and gradient only, a part of the state that changes all the same."""
    made, hyper = program(ema_decay=0.75)
    hyper["optimizer"]["learning_rate"] = jnp.float32(np.inf)
    state = start(made, hyper)
    after, metrics = made.step(state, batch)
    assert np.isfinite([metrics["loss"].total, metrics["gradient_norm"]]).all()
    assert why_refused(metrics) == "learning_rate is inf"
    for part in ("params", "opt_state", "ema", "step"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(state, part))
