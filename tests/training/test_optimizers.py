"""Optimizers: every kind runs on traced knobs, decays by the mask, and acts per layer where it must."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from ablax.config import RequestError, from_dict, static, traced
from ablax.training.masks import DecayConfig, by_rule, clipping, per_layer
from ablax.training.optax_kinds import EXCLUDED, KINDS
from ablax.training.optimizers import (
    OPTIMIZERS,
    AdamWConfig,
    MuonConfig,
    ScheduleFreeAdamWConfig,
    SGDConfig,
    build_optimizer,
    evaluation_params,
)

LAYERED = ["muon", "adafactor", *(name for name, kind in KINDS.items() if kind.layers)]
MASK = DecayConfig().build()


# These programs are compiled for one run each: compile fast, run slowly.
quick = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def some(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tree(seed: int) -> dict:
    blocks = {"in": {"kernel": some(seed, 2, 3, 4), "bias": some(seed + 1, 2, 4)}}
    return {"tokens": {"embedding": some(seed + 2, 5, 3)}, "blocks": blocks}


PARAMS, GRADIENT = tree(0), tree(10)
# Whose first updates are below the resolution of the parameters otherwise.
FASTER = {"adadelta": {"learning_rate": 1.0}}


def nonzero(kind: str):
    """The kind's defaults, with every traced knob away from zero, so that nothing is left out."""
    config = OPTIMIZERS[kind]()
    changes = {name: 0.1 for name, value in traced(config).items() if value == 0}
    # Strong enough to be seen where updates depend on little more than signs.
    changes |= {"weight_decay": 0.9} if "weight_decay" in traced(config) else {}
    return dataclasses.replace(config, **changes, **FASTER.get(kind, {}))


def scalars(config) -> dict:
    return {name: jnp.float32(value) for name, value in traced(config).items()}


def steps(config, hyper, params, gradient, count: int = 1):
    """Parameters after `count` updates with 1, -2, -5 ... times a gradient; knobs from `hyper`."""
    rate = lambda step: hyper["learning_rate"] / (1 + step)  # noqa: E731
    transformation = build_optimizer(static(config), hyper, rate, MASK)
    state = transformation.init(params)
    for step in range(count):
        # Changing gradients: the moments of a constant one do not depend on the betas.
        scaled = jax.tree.map(lambda g, k=step: g * (1 - 3 * k), gradient)
        updates, state = transformation.update(scaled, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.fixture(scope="module")
def outcomes():
    """Of every kind: parameters after a step with decay and without, as two vmapped arms."""
    configs = {kind: nonzero(kind) for kind in OPTIMIZERS}
    hypers = {kind: scalars(config) for kind, config in configs.items()}
    arms = {
        kind: {n: jnp.stack([v, 0 * v if n == "weight_decay" else v]) for n, v in hyper.items()}
        for kind, hyper in hypers.items()
    }

    def all_kinds(arms, params, gradient):
        return {
            kind: jax.vmap(lambda hyper, c=config: steps(c, hyper, params, gradient))(arms[kind])
            for kind, config in configs.items()
        }

    return quick(all_kinds)(arms, PARAMS, GRADIENT)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_kind_descends(outcomes, kind: str):
    """Fails if a knob leaks in as the static nan, or an update has the wrong sign."""
    after = jax.tree.map(np.asarray, outcomes[kind])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    moved = jax.tree.map(lambda a, p, g: ((a[1] - p) * g).sum(), after, PARAMS, GRADIENT)
    # ADOPT's first step only measures the second moment.
    assert sum(jax.tree.leaves(moved)) < 0 or kind == "adopt"


@pytest.mark.parametrize("kind", [k for k in OPTIMIZERS if "weight_decay" in traced(nonzero(k))])
def test_decay_obeys_the_mask(outcomes, kind: str):
    """Fails if weight decay acts on a bias, or not on a matrix."""
    decayed, plain = (jax.tree.map(lambda x, i=i: x[i], outcomes[kind]) for i in (0, 1))
    decayed, plain = decayed["blocks"]["in"], plain["blocks"]["in"]
    if kind != "dowg":  # its one step size depends on every gradient, the decayed ones included
        assert np.array_equal(decayed["bias"], plain["bias"])
    assert not np.array_equal(decayed["kernel"], plain["kernel"])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_traced_knob_reaches_the_program(kind: str):
    """Fails if a knob is declared and never read, or read as a constant."""
    config = nonzero(kind)
    hyper = scalars(config)
    program = jax.make_jaxpr(lambda h: steps(config, h, PARAMS, GRADIENT))(hyper).jaxpr
    used = {id(v) for equation in program.eqns for v in equation.invars}
    names = sorted(hyper)
    assert [n for n, v in zip(names, program.invars, strict=True) if id(v) not in used] == []


def test_layers_are_independent_of_stacking():
    """Fails if a norm, a factored moment or an orthogonal basis is taken over all layers at once."""
    configs = {kind: nonzero(kind) for kind in LAYERED}
    if "adafactor" in configs:
        configs["adafactor"] = dataclasses.replace(configs["adafactor"], min_dim_size_to_factor=2)

    def both(hypers, params, gradient):
        results = {}
        for kind, config in configs.items():
            one = lambda pg, c=config, h=hypers[kind]: steps(  # noqa: E731
                c, h, {"layer": pg[0]}, {"layer": pg[1]}
            )
            layers = jax.lax.map(one, (params, gradient))["layer"]
            stacked = steps(config, hypers[kind], {"blocks": params}, {"blocks": gradient})
            results[kind] = stacked["blocks"], layers
        return results

    hypers = {kind: scalars(config) for kind, config in configs.items()}
    # Layers of very different size: a norm over both would show.
    scale = jnp.array([1.0, 30.0])
    params = jax.tree.map(lambda x: jax.vmap(jnp.multiply)(x, scale), PARAMS["blocks"])
    results = quick(both)(hypers, params, GRADIENT["blocks"])
    for kind, (stacked, layers) in results.items():
        # Batched and single matrix products round differently.
        jax.tree.map(
            lambda a, b, k=kind: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=k),
            stacked,
            layers,
        )


def muon_step(params: dict, gradient: dict) -> dict:
    config = dataclasses.replace(MuonConfig(), weight_decay=0.0)
    after = quick(lambda p, g: steps(config, scalars(config), p, g))(params, gradient)
    return jax.tree.map(lambda a, p: (a - p) / config.learning_rate, after, params)


def test_muon_sees_heads_as_one_matrix():
    """Fails if [D, N, H] is orthogonalised per head, or [N, H, D] along the wrong axes."""
    gradient = {"query": some(1, 6, 2, 4), "out": some(2, 2, 4, 6)}
    heads = {name: {"kernel": leaf} for name, leaf in gradient.items()}
    flat = {
        "query": {"kernel": gradient["query"].reshape(6, 8)},
        "out": {"kernel": gradient["out"].reshape(8, 6)},
    }
    zeros = lambda t: jax.tree.map(jnp.zeros_like, t)  # noqa: E731
    update = muon_step(zeros(heads), heads)
    expected = muon_step(zeros(flat), flat)
    for name in gradient:
        got = np.asarray(update[name]["kernel"]).reshape(expected[name]["kernel"].shape)
        np.testing.assert_allclose(
            got, expected[name]["kernel"], atol=1e-5
        )  # sums in another order, five times
        # Newton-Schulz takes singular values to 0.7 .. 1.2, scaled to a root mean square of 0.2.
        values = np.linalg.svd(got, compute_uv=False) / (0.2 * np.sqrt(8))
        assert 0.6 < values.min() < values.max() < 1.3


def test_adamw_is_its_closed_form():
    """Fails if betas are swapped, a correction is missing, or decay is not times the learning rate."""
    config = dataclasses.replace(AdamWConfig(), b1=0.8, b2=0.9, weight_decay=0.3, eps=1e-3)
    run = quick(lambda hyper: steps(config, hyper, PARAMS, GRADIENT, 2))
    got = run(scalars(config))["blocks"]["in"]
    for name, decay in (("kernel", 0.3), ("bias", 0.0)):
        p, g = np.float64(PARAMS["blocks"]["in"][name]), np.float64(GRADIENT["blocks"]["in"][name])
        m = v = 0
        for t in (1, 2):
            now = g * (4 - 3 * t)
            m, v = 0.8 * m + 0.2 * now, 0.9 * v + 0.1 * now * now
            direction = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)
            p = p - 1e-3 / t * (direction + decay * p)
        np.testing.assert_allclose(got[name], p, rtol=1e-6)  # float32 of float64


def test_schedule_free_evaluates_the_average():
    """Fails if evaluation uses the training point, or the average is weighted one step off."""
    config = ScheduleFreeAdamWConfig()
    hyper = scalars(config)
    rates = np.array([1.0, 0.5, 2.0]) * 1e-2
    rate = lambda step: jnp.asarray(rates, jnp.float32)[step]  # noqa: E731
    transformation = build_optimizer(static(config), hyper, rate, MASK)
    update = quick(transformation.update)
    params, state, iterates = PARAMS, quick(transformation.init)(PARAMS), []
    for _ in range(3):
        updates, state = update(GRADIENT, state, params)
        params = optax.apply_updates(params, updates)
        iterates.append(state.z)
    weights = np.maximum.accumulate(rates) ** 2 / (np.maximum.accumulate(rates) ** 2).sum()
    expected = jax.tree.map(
        lambda *z: sum(w * x for w, x in zip(weights, z, strict=True)), *iterates
    )
    got = evaluation_params(config, state, params)
    # The average is kept up step by step in float32: 2e-7 seen.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)
    assert evaluation_params(AdamWConfig(), state, params) is params


@pytest.mark.parametrize("kind", ["schedule_free_adamw", "prodigy", "adamw"])
def test_state_shares_no_buffer(kind: str):
    """Fails if the optimizer keeps the parameters or a knob itself: donating both then aborts."""
    config = nonzero(kind)

    def init(params, hyper):
        make = build_optimizer(static(config), hyper, lambda step: hyper["learning_rate"], MASK)
        return params, make.init(params), hyper

    for run in (init, jax.jit(init)):
        state = run(jax.tree.map(jnp.copy, PARAMS), scalars(config))
        jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)


def test_momentum_of_zero_keeps_no_buffer():
    """Fails if plain SGD pays for a velocity that it never uses."""
    config = SGDConfig()
    make = build_optimizer(static(config), scalars(config), lambda step: 1.0, MASK)
    leaves = jax.tree.leaves(make.init(PARAMS))
    assert sum(leaf.size for leaf in leaves) == 1


def test_per_layer_without_blocks():
    """Fails if a model without stacked layers cannot use an optimizer that acts per layer."""
    params = {"kernel": some(0, 3, 2)}
    transformation = per_layer(optax.lamb(0.1))
    state = jax.eval_shape(transformation.init, params)
    updates, _ = jax.eval_shape(transformation.update, params, state, params)
    assert updates["kernel"].shape == (3, 2)


def test_decay_rules():
    """Fails if a norm's scale decays, or a rule of the user's is asked too late."""
    names = ["blocks/mlp/in/kernel", "blocks/mlp/in/bias", "blocks/mlp_norm/scale", "x/embedding"]
    params = {name: jnp.zeros(1) for name in names}
    assert [MASK(params)[name] for name in names] == [True, False, False, True]
    config = DecayConfig(embeddings=False, weights=("norm",), spared=("mlp/in/k",))
    assert [config.build()(params)[name] for name in names] == [False, False, True, False]


def test_an_uncovered_parameter_is_an_error():
    """Fails if a parameter of unknown name decays, or does not, by accident."""
    with pytest.raises(RequestError, match=r"blocks/gate/alpha.*decay\.weights"):
        MASK({"blocks": {"gate": {"alpha": jnp.zeros(1)}}})
    with pytest.raises(RequestError, match="regular expression"):
        by_rule((("(", True),), "weight decay", "")


def test_clipping():
    """Fails if a small gradient is scaled, or a large one keeps its norm."""
    norm = jnp.float32(5)
    assert clipping(norm, 1.0) == jnp.float32(0.2)
    assert clipping(norm, 6.0) == clipping(norm, None) == 1


def test_knobs_are_checked():
    """Fails if an argument of an optax optimizer is mistyped without an error."""
    with pytest.raises(RequestError, match=r"did you mean 'b1'"):
        from_dict(OPTIMIZERS["lamb"], {"bb1": 0.5})
    with pytest.raises(RequestError, match=r"b2=1.5"):
        from_dict(OPTIMIZERS["prodigy"], {"b2": 1.5})
    with pytest.raises(RequestError, match="true or false"):
        from_dict(OPTIMIZERS["rmsprop"], {"centered": "perhaps"})
    assert all(f.metadata["doc"] for c in OPTIMIZERS.values() for f in dataclasses.fields(c))


def test_every_optimizer_of_optax_is_offered_or_refused():
    """Fails if a new version of optax brings an optimizer that nobody decided about."""
    ours = {getattr(kind.factory, "__name__", name) for name, kind in KINDS.items()}
    known = ours | set(OPTIMIZERS) | set(EXCLUDED) | {"scale_by_learning_rate", "scale_by_rprop"}
    for module in (optax, contrib):
        for name, function in vars(module).items():
            if inspect.isfunction(function) and not name.startswith(("_", "scale_by")):
                names = inspect.signature(function).parameters
                assert "learning_rate" not in names or name in known, name
