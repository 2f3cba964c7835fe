"""The verdict on a step, against statistics computed by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError, static, traced
from ablax.objectives.sums import Sums
from ablax.training.guard import ACCEPTED, NOT_FINITE, SPIKE, GuardConfig, GuardState, judge
from ablax.training.optimizers import OPTIMIZERS, build_optimizer
from ablax.training.recovery import first_not_finite
from ablax.training.state import scalars

CONFIG, OFF = GuardConfig(spike=4.0, window=8), GuardConfig(window=8)
RATE = jnp.float32(1e-3)
HYPER = {"training": {"guard": {"spike": jnp.float32(4)}}}


def judged(losses, state=None, norm=1.0, config=CONFIG, rate=RATE):
    """The verdicts on mean losses, one after the other, and the last state."""
    state, verdicts = state or GuardState.fresh(), []
    for loss in losses:
        sums = Sums(jnp.float32(3 * loss), jnp.int32(3))
        before, state = (
            state,
            judge(config, state, HYPER, sums, jnp.float32(norm), jnp.float32(rate)),
        )
        verdicts.append(int(state.refused))
        if verdicts[-1]:  # released
            state = before
    return verdicts, state


@pytest.fixture
def usual():
    return np.exp(1 + 0.05 * np.random.default_rng(0).normal(size=40))


def test_statistics_are_those_of_the_log_losses(usual):
    """Catches: a variance around the new mean, weights that do not sum to one, the loss in place of its logarithm."""
    verdicts, state = judged(usual[:8])
    assert verdicts == [ACCEPTED] * 8
    logs = np.log(usual[:8])
    np.testing.assert_allclose(state.mean, logs.mean(), rtol=1e-5)  # float32
    np.testing.assert_allclose(state.variance, logs.var(), rtol=1e-3)
    _, state = judged(usual)
    mean, variance = logs.mean(), logs.var()
    for level in np.log(usual[8:]):
        change = level - mean
        mean, variance = mean + change / 8, 7 / 8 * (variance + change**2 / 8)
    np.testing.assert_allclose([state.mean, state.variance], [mean, variance], rtol=1e-3)


def test_a_spike_is_refused_and_does_not_move_the_statistics(usual):
    """Catches: a bound from the spike's own statistics, a threshold on the wrong side, spikes before there is a
    window, and a spike that is looked for although nobody asked."""
    _, before = judged(usual)
    deviation = max(float(before.variance) ** 0.5, 0.01)
    above, below = (float(np.exp(before.mean + z * deviation)) for z in (4.1, 3.9))
    (verdict,), after = judged([above], before)
    assert (verdict, float(after.mean)) == (SPIKE, float(before.mean))
    assert judged([below], before)[0] == [ACCEPTED]
    assert judged([above], before, config=OFF)[0] == [ACCEPTED]
    assert judged([0.01 * below], before)[0] == [ACCEPTED]
    assert judged([*usual[:7], 1e4])[0] == [ACCEPTED] * 8
    assert judged([*usual[:8], 1e4])[0] == [ACCEPTED] * 8 + [SPIKE]


def test_losses_that_hardly_vary_make_no_spike_of_a_per_cent():
    assert judged([2.0] * 9 + [2.0 * 1.03])[0] == [ACCEPTED] * 10
    assert judged([2.0] * 9 + [2.0 * 1.05])[0] == [ACCEPTED] * 9 + [SPIKE]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    assert judged([bad], config=OFF)[0] == [NOT_FINITE]
    assert judged([bad])[0] == [NOT_FINITE]
    assert judged([1.0], norm=bad)[0] == [NOT_FINITE]
    assert judged([1.0], rate=bad)[0] == [NOT_FINITE]


def test_a_refused_step_freezes_those_that_follow():
    """Catches: a second step, dispatched before the host knew, that is applied."""
    frozen = dataclasses.replace(GuardState.fresh(), refused=jnp.int32(SPIKE))
    state = judge(OFF, frozen, {}, Sums(jnp.float32(3), jnp.int32(3)), jnp.float32(1), RATE)
    assert int(state.refused) == SPIKE


def test_the_first_leaf_that_is_not_finite_is_named():
    tree = {"a": {"b": jnp.ones(3), "c": jnp.arange(3)}, "d": jnp.ones((2, 2))}
    assert first_not_finite(tree) is None
    tree["d"] = tree["d"].at[1, 0].set(-jnp.inf)
    assert first_not_finite(tree) == "d"
    tree["a"]["b"] = tree["a"]["b"].at[0].set(jnp.nan)
    assert first_not_finite(tree) == "a/b"


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_starts_with_a_finite_state(kind):
    """Catches: a state with an infinity that means "none yet", so that no checkpoint could ever be saved."""
    config = OPTIMIZERS[kind]()
    hyper = scalars(traced(config))
    params = {
        "blocks": {"kernel": np.ones((2, 4, 4), "f4")},
        "tokens": {"embedding": np.ones((4, 4), "f4")},
    }
    everywhere = lambda tree: jax.tree.map(lambda _: True, tree)  # noqa: E731
    made = build_optimizer(static(config), hyper, lambda step: jnp.float32(1e-3), everywhere)
    state = made.init(params)
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(np.asarray(leaf)).all()


@pytest.mark.parametrize(
    "knobs", [{"spike": -1.0}, {"window": 1}, {"skip_batches": -1}, {"patience": -1}]
)
def test_senseless_knobs_are_refused(knobs):
    with pytest.raises(RequestError, match=next(iter(knobs))):
        GuardConfig(**knobs)
