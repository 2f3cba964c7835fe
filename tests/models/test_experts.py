"""A mixture of experts against every expert on every token; what is dropped, what balances, what is reported."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.experiment import base, resolve
from ablax.models.experts import Experts, block_size
from ablax.models.feedforward import ExpertsConfig
from ablax.models.layers import ACTIVATIONS, GATED, Activation
from ablax.models.transformer import DecoderConfig
from ablax.testing.knobs import check_traced
from ablax.testing.subject import Subject
from ablax.training import session

B, T, D, F, E = 2, 8, 6, 10, 4
# Row 1 begins and ends with padding.
SEGMENTS = jnp.asarray([[1] * T, [0, 1, 1, 2, 2, 2, 2, 0]])
# float32 sums of some dozens of values near 1, in another order.
close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)
FORMS = {
    "dropless": ExpertsConfig(num_experts=E),
    "capacity": ExpertsConfig(num_experts=E, capacity_factor=float(E)),  # room for every choice
    "dropping": ExpertsConfig(num_experts=E, capacity_factor=0.5),
    "one": ExpertsConfig(num_experts=E, experts_per_token=1, normalise=False, capacity_factor=1.0),
    "unnormalised": ExpertsConfig(num_experts=E, experts_per_token=3, normalise=False),
}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """These programs run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def context(train=True, **hyper):
    factors = {"balance_loss": 1.0, "z_loss": 1.0, **hyper}
    rule = SimpleNamespace(query_segments=SEGMENTS)
    return SimpleNamespace(rule=rule, train=train, hyper={"feedforward": factors})


@functools.cache
def layer(form: str, activation: Activation = "swiglu"):
    """A layer with random parameters, and inputs [B T D]."""
    module = Experts(FORMS[form], F, activation, bias=True, dtype="float32")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, D)), jnp.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, 0.1, 0.1, context()))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(0, 0.6, s.shape), s.dtype), shapes["params"]
    )
    return module, params, x


def run(module, params, x, train=True) -> Any:
    """Output, and what was sown."""
    return module.apply(
        {"params": params},
        x,
        0.1,
        0.1,
        context(train),
        mutable=["intermediates", "losses", "reports"],
    )


def choices(config, params, x):
    """Experts in order of probability [B T k], and their weights, in NumPy."""
    logits = np.asarray(x, float) @ np.asarray(params["router"]["kernel"], float)
    chosen = np.argsort(-logits, axis=-1)[..., : config.experts_per_token]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    weights = np.take_along_axis(probabilities, chosen, -1)
    if config.normalise:
        weights /= weights.sum(-1, keepdims=True)
    return logits, probabilities, chosen, weights


def kept(config, chosen):
    """Which choices find a place, one after the other."""
    found = np.ones(chosen.shape, bool)
    if config.capacity_factor is None:
        return found
    slots = int(np.ceil(config.capacity_factor * config.experts_per_token * T / E))
    for row in range(B):
        used = np.zeros(E, int)
        for t, j in np.ndindex(chosen.shape[1:]):
            expert = chosen[row, t, j]
            found[row, t, j] = SEGMENTS[row, t] != 0 and used[expert] < slots
            used[expert] += found[row, t, j]
    return found


def reference(config, activation, params, x, mask):
    """Every expert on every token, weighted: differentiable."""
    logits = x @ params["router"]["kernel"]
    top = jax.lax.top_k(logits, config.experts_per_token)
    weights = jax.nn.softmax(top[0]) if config.normalise else None
    if weights is None:
        weights = jnp.take_along_axis(jax.nn.softmax(logits), top[1], -1)
    hot = jax.nn.one_hot(top[1], E) * (weights * mask)[..., None]

    def product(x, name):
        equation = "btd,edf->btef" if x.ndim == 3 else "btef,efd->bted"
        return jnp.einsum(equation, x, params[name]["kernel"]) + params[name]["bias"][None, None]

    inner = product(x, "in")
    if activation in GATED:
        inner = GATED[activation](product(x, "gate")) * inner
    else:
        inner = ACTIVATIONS[activation](inner)
    return jnp.einsum("bted,btke->btd", product(inner, "out"), hot)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_weighted_sum_of_every_expert(form):
    """The law: outputs and all gradients, router included.

    Catches: a token in another's place, a weight of another choice, padding that takes a place, an expert's bias or
    kernel of its neighbour, an order of service that is not that of positions."""
    activation = "relu" if form == "one" else "swiglu"
    module, params, x = layer(form, activation)
    config = FORMS[form]
    mask = kept(config, choices(config, params, x)[2])
    counts = (SEGMENTS != 0)[..., None]  # what becomes of padding means nothing

    def total(apply, params, x):
        return jnp.where(counts, apply(params, x) * jnp.cos(x), 0).sum()

    def ours(params, x):
        return run(module, params, x)[0]

    def truth(params, x):
        return reference(config, activation, params, x, mask)

    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(total, f), argnums=(0, 1)))(params, x)
        for f in (ours, truth)
    )
    jax.tree.map(close, found, expected)
    assert mask[np.asarray(SEGMENTS) != 0].all() == (form not in ("dropping", "one"))


def test_dropping_is_causal_within_a_row_and_stays_in_it():
    """Catches: all first choices served before second ones, and places counted over the batch."""
    module, params, x = layer("dropping")
    apply = jax.jit(lambda x: run(module, params, x)[0])
    before = np.asarray(apply(x))
    moved = set()
    for place in range(T):
        after = np.asarray(apply(x.at[0, place].set(-x[0, place])))
        np.testing.assert_array_equal(after[0, :place], before[0, :place])
        np.testing.assert_array_equal(after[1], before[1])
        moved |= set(np.flatnonzero((after[0] != before[0]).any(-1)) - place)
    assert max(moved) > 0, "an earlier token must be able to take a later one's place"


def test_nothing_is_dropped_outside_training():
    module, params, x = layer("dropping")
    found = run(module, params, x, train=False)[0]
    expected = reference(FORMS["dropping"], "swiglu", params, x, 1.0)
    close(found, expected)


def test_losses_and_reports_are_the_papers():
    """Against NumPy: equation 4 of Switch, equation 5 of ST-MoE, over the tokens of each row that are no padding.

    Catches: padding that counts, a mean over the batch, a factor that is not applied, a share of the wrong total."""
    module, params, x = layer("dropping")
    config = FORMS["dropping"]
    logits, probabilities, chosen, weights = choices(config, params, x)
    _, sown = run(module, params, x)
    found = kept(config, chosen)
    for row, part in enumerate((slice(0, T), slice(1, 7))):
        shares = np.eye(E)[chosen[row, part]].mean((0, 1))
        balance = E * (shares * probabilities[row, part].mean(0)).sum()
        z = (np.log(np.exp(logits[row, part]).sum(-1)) ** 2).mean()
        close(sown["losses"]["balance"][0][row], balance)
        close(sown["losses"]["z"][0][row], z)
        close(sown["reports"]["router_balance"][0][row], balance)
        close(sown["reports"]["router_z"][0][row], z)
        close(sown["reports"]["dropped_share"][0][row], 1 - found[row, part].mean())
        loads = [sown["reports"]["expert_load"][0][str(e)][row] for e in range(E)]
        close(loads, shares)
    np.testing.assert_array_equal(sown["intermediates"]["chosen"][0], chosen)
    close(sown["intermediates"]["weights"][0], weights * found)


def test_an_even_router_has_balance_one():
    module, params, x = layer("dropless")
    even = {**params, "router": {"kernel": jnp.zeros((D, E))}}
    _, sown = run(module, even, x)
    close(sown["losses"]["balance"][0], 1)
    close(sown["losses"]["z"][0], np.log(E) ** 2)


@pytest.mark.parametrize("choices", [256, 2048, 65536])
def test_blocks_waste_at_most_a_quarter(choices):
    size = block_size(choices, 8)
    assert size <= 512
    assert (choices // size + 8) * size <= 1.25 * choices


def test_both_losses_are_traced_and_act():
    """Catches: a factor as a constant of the program, and one that nothing reads."""
    experts = ExpertsConfig(num_experts=2, capacity_factor=1.0)
    config = DecoderConfig(num_layers=1, width=8, num_heads=2, feedforward=experts)
    check_traced(Subject.of(config, 31, 7))


# -- in the training step ----------------------------------------------------------------------------------------------

ROWS, LENGTH, V = 4, 8, 20
MODEL = {
    "model.num_layers": 2,
    "model.width": 8,
    "model.num_heads": 2,
    "model.feedforward.kind": "experts",
    "model.feedforward.num_experts": E,
    "model.feedforward.capacity_factor": 0.75,
    "model.feedforward.balance_loss": 0.5,
    "model.feedforward.z_loss": 0.25,
    "training.batch_size": ROWS,
    "data.sequence_length": LENGTH,
    "schedule.warmup": 1,
}


@functools.cache
def gradients(**changes):
    """Gradient, loss and metrics of a step from the same random parameters."""
    experiment = resolve(base(), {**MODEL, **changes})
    program = session.build_program(experiment, V, session.Clock(5, 100, 1.0))
    state = session.abstract_state(program, experiment)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape).astype(s.dtype), state.params)
    batch = {
        "tokens": rng.integers(0, V, (ROWS, LENGTH)),
        "targets": rng.integers(0, V, (ROWS, LENGTH)),
        "positions": np.tile(np.arange(LENGTH), (ROWS, 1)),
        "segment_ids": np.ones((ROWS, LENGTH), int),
        "loss_weights": rng.random((ROWS, LENGTH)) < np.linspace(0.3, 1, ROWS)[:, None],
    }
    batch = {name: rows.astype(program.spec[name].dtype) for name, rows in batch.items()}
    state = dataclasses.replace(
        state,
        params=params,
        step=jnp.int32(0),
        rng=session.root_key(0),
        hyper=session.hyper_of(experiment),
    )

    @jax.jit
    def run(params, hyper, batch):
        now = dataclasses.replace(state, params=params, hyper=hyper)
        return program.gradients(now, batch)[:3]

    return jax.tree.map(np.asarray, run(params, state.hyper, batch))


def test_the_models_losses_are_descended():
    """Loss = nats + balance and z, each times its factor, summed over layers; the gradient is that of all three.

    Catches: a loss that is not added, counted once for a batch instead of once per position, or that is a mean over
    layers; a gradient that stops at the routing."""
    gradient, loss, metrics = gradients()
    mean = {name: sums.total / sums.count for name, sums in metrics.items()}
    own = 2 * (0.5 * mean["router_balance"] + 0.25 * mean["router_z"])
    close(loss.total / loss.count, mean["nats_per_token"] + own)
    plain, plain_loss, _ = gradients(
        **{"model.feedforward.balance_loss": 0.0, "model.feedforward.z_loss": 0.0}
    )
    close(plain_loss.total / plain_loss.count, mean["nats_per_token"])
    routers = [g["blocks"]["experts"]["router"]["kernel"] for g in (gradient, plain)]
    assert np.abs(routers[0] - routers[1]).max() > 0.1
    loads = [mean[f"expert_load_{e}"] for e in range(E)]
    close(sum(loads), 1)
    assert 0 < mean["dropped_share"] < 1
    assert {*metrics} == {
        "nats_per_token",
        "accuracy",
        "router_balance",
        "router_z",
        "dropped_share",
        *(f"expert_load_{e}" for e in range(E)),
    }


@pytest.mark.parametrize(
    "execution",
    [
        {"training.accumulation": 2},
        {"model.unroll": 1, "model.remat": "full"},
        {"model.fold_rows": False, "training.loss_chunk": 3},
    ],
    ids=str,
)
def test_execution_changes_nothing(execution):
    """Micro-batches, loops, recomputation and chunks: all losses are sums over rows.

    Catches: a balance over the micro-batch, what a scan over layers does not hand out, losses that are lost where the
    head is computed apart."""
    jax.tree.map(close, gradients(**execution), gradients())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"experts_per_token": 9},
            "experts_per_token=9 must be at least 1 and at most num_experts=8",
        ),
        ({"experts_per_token": 1}, "set normalise=false"),
        ({"capacity_factor": 0.0}, "capacity_factor=0.0 must be above 0"),
        ({"balance_loss": -1.0}, "balance_loss and z_loss"),
    ],
)
def test_mistakes_are_refused(knobs, message):
    with pytest.raises(RequestError, match=message):
        ExpertsConfig(**knobs)


def test_an_objective_must_hand_on_what_it_was_given():
    """Catches: losses of the model that vanish because an objective returns another carry."""
    experiment = resolve(base(), MODEL)
    program = session.build_program(experiment, V, session.Clock(5, 100, 1.0))
    careless = SimpleNamespace(loss=lambda apply, batch, hyper: (None, {}, ()))
    program = dataclasses.replace(program, objective=careless)
    state = session.abstract_state(program, experiment)
    with pytest.raises(RequestError, match="must return as its third value"):
        jax.eval_shape(program.gradients, state, dict(program.spec))
