"""Causal targets stay inside their segment, and the loss is a sum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ablax.objectives.causal import CausalConfig, token_losses
from ablax.objectives.sums import Sums


class Given:
    """A forward pass whose logits are known."""

    def __init__(self, logits):
        self.logits = logits

    def sums(self, batch, score):
        return score(self.logits, batch), ()


def row(tokens, segments):
    return {
        "tokens": np.asarray(tokens, np.int32),
        "positions": np.arange(len(tokens), dtype=np.int32),
        "segment_ids": np.asarray(segments, np.int32),
    }


def test_targets_do_not_cross_segments():
    """Catches a weight on the first token of the next document, and on padding."""
    made = CausalConfig().transform(
        row([1, 5, 2, 1, 6, 0, 0], [1, 1, 1, 2, 2, 0, 0]), np.random.default_rng(0), None
    )
    np.testing.assert_array_equal(made["targets"], [5, 2, 1, 6, 0, 0])
    np.testing.assert_array_equal(made["loss_weights"], [1, 1, 0, 1, 0, 0])


def test_loss_is_the_sum_that_optax_gives():
    """Catches a mean in place of the sum, and a count of all positions."""
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    targets = jnp.array([[1, 2, 3], [4, 0, 1]], jnp.int32)
    weights = jnp.array([[1.0, 0, 1], [1, 1, 0]])
    batch = {"targets": targets, "loss_weights": weights}
    loss, metrics, _ = CausalConfig().loss(Given(logits), batch, {})
    each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    # Roundings of float32, here and below.
    np.testing.assert_allclose(loss.total, (each * weights).sum(), rtol=1e-6)
    assert int(loss.count) == 4
    correct = (logits.argmax(-1) == targets) * weights
    np.testing.assert_allclose(metrics["accuracy"].total, correct.sum())


def test_smoothing_is_that_of_optax():
    """Catches the rate spread over the other classes only, and a rate that is a constant of the program."""
    logits = jax.random.normal(jax.random.key(0), (1, 4, 6))
    targets = jnp.array([[1, 2, 3, 0]], jnp.int32)
    batch = {"targets": targets, "loss_weights": jnp.ones((1, 4))}
    config = CausalConfig(label_smoothing=float("nan"))
    traces = []

    @jax.jit
    def total(rate):
        traces.append(rate)
        return config.loss(Given(logits), batch, {"label_smoothing": rate})[0].total

    for rate in (0.1, 0.3):
        smooth = optax.smooth_labels(jax.nn.one_hot(targets, 6), rate)
        expected = optax.softmax_cross_entropy(logits, smooth).sum()
        np.testing.assert_allclose(total(jnp.float32(rate)), expected, rtol=1e-5)
    assert len(traces) == 1


def test_wrong_shapes_are_named():
    with pytest.raises(Exception, match="targets"):
        token_losses(jnp.zeros((2, 3, 5)), jnp.zeros((2, 4), jnp.int32))


def test_sums_add():
    total = Sums.of(jnp.array([1.0, 2, 3]), jnp.array([1, 0, 1])) + Sums.zero()
    assert (float(total.total), int(total.count)) == (4.0, 2)
