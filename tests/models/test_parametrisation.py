"""muP: the standard parametrisation at the base, and changes of one size at every other width."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError, static, traced
from ablax.coordinates import changes, slopes
from ablax.experiment import base, resolve
from ablax.inspection import program_of
from ablax.models.attention import DotProductAttention
from ablax.models.feedforward import ExpertsConfig
from ablax.models.parametrisation import MaximalUpdateParametrisation
from ablax.models.positions import RotaryPositions, T5Positions
from ablax.models.transformer import DecoderConfig, EncoderConfig
from ablax.training import session
from ablax.training.masks import DecayConfig, parameter_path
from ablax.training.optimizers import AdamWConfig, SGDConfig, build_optimizer

V, T = 11, 6
MUP = MaximalUpdateParametrisation(width=8, num_heads=2)
SIZES: dict[str, Any] = {"num_layers": 2, "width": 8, "num_heads": 2}
# Together: both heads, every kind of feed-forward layer, grouped heads and every table of positions.
VARIANTS = {
    "tied": DecoderConfig(**SIZES, scale_embeddings=True),
    "gated": DecoderConfig(
        **SIZES,
        num_kv_heads=1,
        activation="swiglu",
        tied_embeddings=False,
        positions=RotaryPositions(),
        query_key_norm=True,
    ),
    "experts": DecoderConfig(
        **SIZES, feedforward=ExpertsConfig(num_experts=4), positions=T5Positions()
    ),
    "encoder": EncoderConfig(**SIZES, num_token_types=2),
}


def wider(config, times: int):
    """With heads of their old width, as many times more of them; muP's base is the config itself."""
    return dataclasses.replace(
        config,
        width=times * 8,
        num_heads=times * 2,
        num_kv_heads=times if config.num_kv_heads else None,
        parametrisation=MUP,
    )


@functools.cache
def shapes(config):
    return jax.eval_shape(functools.partial(initial, config), jax.random.key(0))


def initial(config, key):
    ids = jnp.ones((1, T), jnp.int32)
    hyper = jax.tree.map(jnp.float32, traced(config))
    return static(config).build(V, T).init(key, ids, ids, ids, hyper=hyper)["params"]


def program_at(parametrisation: dict) -> str:
    """Start and step of an experiment, traced."""
    overrides = {f"model.{k}": v for k, v in SIZES.items()} | {"data.sequence_length": T}
    experiment = resolve(base(), {**overrides, **parametrisation})
    program = program_of(experiment, V, None)
    hyper, state = session.hyper_of(experiment), session.abstract_state(program, experiment)
    start = jax.make_jaxpr(program.init)(session.root_key(0), hyper)
    return f"{start}{jax.make_jaxpr(program.step)(state, dict(program.spec))}"


def test_at_the_base_it_is_the_standard_parametrisation():
    """The same programs, so the same run to the last bit; another base is another program.

    Catches: a factor that is not relative to the base, such as attention by 1 / H.
    """
    mup = {"model.parametrisation": "mup", "model.parametrisation.num_heads": 2}
    standard = program_at({})
    assert program_at({**mup, "model.parametrisation.width": 8}) == standard
    assert program_at({**mup, "model.parametrisation.width": 4}) != standard


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_learning_rates_follow_the_shapes(name, rule):
    """Table 8 of the paper, from the parameters' own shapes at two widths (table 3 for the router).

    Catches: a parameter that no rule covers, a rule that covers another one too, fan-in for fan-out.
    """
    config = VARIANTS[name]
    small, large = shapes(config), shapes(wider(config, 4))
    pairs = zip(jax.tree.leaves_with_path(small), jax.tree.leaves(large), strict=True)
    rates = session_rates(wider(config, 4), rule, large)
    for (path, before), after in pairs:
        path = parameter_path(path)
        grown = [b / a for a, b in zip(before.shape, after.shape, strict=True)]
        matrix = path.endswith("kernel") and path != "head/kernel"
        if matrix:
            fan_in, fan_out = grown[-2:]
            expected = 1 / fan_in if rule == "adam" else fan_out / fan_in
        else:
            expected = 1 if rule == "adam" else max(grown)
        assert rates[path] == pytest.approx(expected, rel=1e-5), path  # a rounding of float32


def session_rates(config, rule, params) -> dict[str, float]:
    """Factor of every parameter, seen in the updates of an optimizer that is linear in the learning rate.

    They are the same for each element, so one of each parameter will do, and one program for all.
    """
    optimizer = {"adam": AdamWConfig(weight_decay=0.0), "sgd": SGDConfig(learning_rate=1.0)}[rule]
    hyper = traced(optimizer)
    ones = jax.tree.map(lambda leaf: np.ones(1, np.float32), params)

    def updates(rates):
        tx = build_optimizer(optimizer, hyper, lambda step: 1.0, DecayConfig().build(), rates)
        return tx.update(ones, tx.init(ones), ones)[0]

    plain, own = updates(()), updates(config.learning_rates(rule))
    leaves = zip(jax.tree.leaves_with_path(own), jax.tree.leaves(plain), strict=True)
    return {parameter_path(p): float(a[0] / b[0]) for (p, a), b in leaves}


@pytest.mark.parametrize("name", VARIANTS)
def test_initial_weights_shrink_with_their_inputs(name):
    """Hidden weights by the root of their growth, the router's by it, embeddings and heads not at all.

    Catches: a projection that is left out, a table that shrinks.
    """
    config = dataclasses.replace(VARIANTS[name], width=64, num_heads=2, num_kv_heads=None)
    near = dataclasses.replace(MUP, width=64)
    far = dataclasses.replace(MUP, width=16)
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

    @functools.partial(jax.jit, compiler_options=quick)
    def both(key):
        return [initial(dataclasses.replace(config, parametrisation=p), key) for p in (near, far)]

    before, after = both(jax.random.key(0, impl="unsafe_rbg"))
    for (path, a), b in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
        path = parameter_path(path)
        if path.endswith(("bias", "scale")):
            continue
        hidden = path.endswith("kernel") and path != "head/kernel"
        expected = 1 / 4 if "router" in path else 1 / 2 if hidden else 1
        # One gated inner width is rounded to 32: 192 over 64 in place of 42.7.
        exact = not (path.endswith("mlp/out/kernel") and config.activation == "swiglu")
        ratio = float(jnp.std(b) / jnp.std(a))
        # The same draws times another number: only float32 sums differ.
        assert ratio == pytest.approx(expected if exact else 3**-0.5, rel=1e-4), path


def test_attention_is_scaled_by_the_head_width_and_logits_by_the_width():
    """Heads of 8 over the base's 4: scores by sqrt(4) / 8 in place of 1 / sqrt(8); logits by 8 / 16.

    Catches: a scale that is left out, or not relative to the base.
    """
    sizes = {**SIZES, "width": 16}
    usual = DecoderConfig(**sizes, attention=DotProductAttention(scale=4**0.5 / 8))
    mup = DecoderConfig(**sizes, parametrisation=MUP)
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32)  # noqa: E731
    params = jax.tree.map(draw, shapes(usual))
    tokens = jnp.arange(T)[None]

    def logits(config):
        hyper = jax.tree.map(jnp.float32, traced(config))
        arguments = tokens, tokens, jnp.ones_like(tokens)
        apply = jax.jit(config.build(V, T).apply)
        return apply({"params": params}, *arguments, hyper=hyper)[0]

    # Measured: 4e-7, as the queries are scaled before the products in place of after them.
    np.testing.assert_allclose(logits(mup), logits(usual) / 2, rtol=1e-4, atol=1e-5)


def test_weight_decay_is_the_same_at_every_width():
    """Catches: a decay that follows the parameter's own learning rate."""
    optimizer = AdamWConfig(weight_decay=0.5)
    params = {"blocks": {"mlp": {"in": {"kernel": np.ones((2, 3, 3), np.float32)}}}}
    still = jax.tree.map(np.zeros_like, params)
    for rates in ((), ((r"kernel$", 0.25), ("", 1.0))):
        tx = build_optimizer(
            optimizer, traced(optimizer), lambda step: 0.1, DecayConfig().build(), rates
        )
        updates, _ = tx.update(still, tx.init(params), params)
        np.testing.assert_allclose(jax.tree.leaves(updates)[0], -0.05, rtol=1e-6)


def test_the_coordinate_check():
    """What three steps of Adam change grows with the width in the standard parametrisation, and does not in muP.

    At the base both are one (see above). Catches, in muP: hidden weights that learn at the whole rate, logits that are
    not divided.
    """
    widths = (16, 128)
    experiment = resolve(
        base(optimizer="adam"),
        {"model.num_layers": 1, "model.num_heads": 2, "model.width": 16, "model.init_scale": 4.0}
        | {"data.sequence_length": 16, "training.batch_size": 4, "optimizer.learning_rate": 1e-2},
    )
    base_sizes = {"model.parametrisation.width": 16, "model.parametrisation.num_heads": 2}
    arms = [{"model.width": width} for width in widths]
    arms.append({**arms[-1], "model.parametrisation": "mup", **base_sizes})
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        start, usual, mup = changes(experiment, arms, steps=3)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    grown, kept = (slopes(widths, [start, end]) for end in (usual, mup))
    # Measured: 1.20 and 0.75, in muP -0.03 and -0.26.
    assert set(grown) == {"block 0", "logits"}
    assert grown["block 0"] > 0.8
    assert grown["logits"] > 0.3
    assert abs(kept["block 0"]) < 0.3
    assert -0.6 < kept["logits"] < 0.15


def test_what_does_not_go_together_is_refused():
    with pytest.raises(RequestError, match=r"attention\.scale=1\.0 is the same at every width"):
        DecoderConfig(parametrisation=MUP, attention=DotProductAttention(scale=1.0))
    with pytest.raises(RequestError, match=r"num_heads=3 does not divide parametrisation\.width=8"):
        MaximalUpdateParametrisation(width=8, num_heads=3)
    with pytest.raises(RequestError, match="no learning rates for MuonConfig"):
        resolve(base(optimizer="muon"), {"model.parametrisation": "mup"})
    adam = AdamWConfig()
    tx = build_optimizer(adam, traced(adam), lambda step: 1.0, lambda tree: tree, (("a", 0.5),))
    with pytest.raises(RequestError, match="no learning rate rule covers the parameter mine"):
        tx.init({"mine": jnp.ones(1)})
