"""Feed-forward networks, norms, dropout and the vocabulary head, each against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from ablax.models.heads import VocabularyHead
from ablax.models.layers import ACTIVATIONS, GATED, NORMS, FeedForward, dropout, make_norm


def _gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _gelu(x):
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


FORMULAS = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "swiglu": lambda x: x / (1 + np.exp(-x)),
    "geglu": _gelu,
    "geglu_tanh": _gelu_tanh,
}


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *GATED])
def test_feed_forward_equals_its_formula(activation):
    """Catches: the activation on the wrong branch of the gate; tanh GELU where the exact one is asked."""
    module = FeedForward(6, activation, bias=True, dtype="float32")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x), 0.02, 0.02)["params"]
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)

    def linear(name, inputs):
        return inputs @ params[name]["kernel"] + params[name]["bias"]

    act = FORMULAS[activation]
    if activation in GATED:
        expected = linear("out", act(linear("gate", x)) * linear("in", x))
    else:
        expected = linear("out", act(linear("in", x)))
    ours = module.apply({"params": params}, jnp.asarray(x), 0.02, 0.02)
    # float32 sums of products up to 10 in another order: 1.3e-6 seen.
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("kind", NORMS)
def test_norms_equal_their_formulas(kind):
    """Catches: E[x^2] - E[x]^2 in float32, which is 5 % off at this mean."""
    x = np.random.default_rng(0).normal(1000, 1, size=(3, 64))
    centred = x - x.mean(-1, keepdims=True) if kind == "layernorm" else x
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    norm = make_norm(kind, 1e-5, bias=False, dtype="float32")
    variables = norm.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    assert list(variables["params"]) == ["scale"]
    # Inputs near 1000 are rounded by up to 3e-5 each, and so is their mean: 1e-4 seen.
    np.testing.assert_allclose(
        norm.apply(variables, jnp.asarray(x, jnp.float32)), expected, atol=1e-3
    )


def test_norm_statistics_are_float32_under_bfloat16():
    norm = make_norm("layernorm", 1e-5, bias=True, dtype="bfloat16")
    x = jnp.ones((2, 8), jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x)
    jaxpr = str(jax.make_jaxpr(norm.apply)(variables, x))
    assert "f32[2,1] = rsqrt" in jaxpr or "f32[2] = rsqrt" in jaxpr
    assert norm.apply(variables, x).dtype == jnp.bfloat16
    assert variables["params"]["scale"].dtype == jnp.float32


def test_dropout_keeps_the_mean_and_compiles_once():
    """Catches: a rate baked into the program, a forgotten 1 / (1 - rate), and one that bfloat16 rounds."""
    drop = jax.jit(dropout)
    x = jnp.ones(20_000)
    for rate in (0.1, 0.5):
        y = drop(x, jnp.float32(rate), jax.random.key(0))
        # Six standard errors of a mean of 20,000 Bernoulli draws.
        assert float(jnp.mean(y == 0)) == pytest.approx(rate, abs=0.022)
        assert float(y.max()) == pytest.approx(1 / (1 - rate))
    assert drop._cache_size() == 1
    half = jax.random.uniform(jax.random.key(1), x.shape, jnp.bfloat16, 1, 2)
    y = drop(half, jnp.float32(0.1), jax.random.key(0)).astype(jnp.float32)
    kept = jnp.where(y == 0, 0, half.astype(jnp.float32))
    # Roundings of 2^-8 / sqrt(12) each, over 18,000 of them: 1e-5; a rounded scale is 2e-3 off.
    assert float(y.sum() / kept.sum()) == pytest.approx(1 / 0.9, rel=2e-4)
    np.testing.assert_array_equal(drop(x, jnp.float32(0.0), jax.random.key(0)), x)
    assert np.isnan(dropout(x[:2], float("nan"), jax.random.key(0))).all()


@pytest.mark.parametrize("tied", [True, False])
def test_head_is_float32_and_capped(tied):
    """Catches: logits rounded to the compute dtype, a cap before the bias."""
    head = VocabularyHead(5, False, True, 2.0, "layernorm", 1e-5, "bfloat16")
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 2, 4)), jnp.bfloat16)
    table = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    params = {"bias": jnp.arange(5.0)} | ({} if tied else {"kernel": table.T})
    logits = head.apply({"params": params}, x, table if tied else None, 0.02)
    rounded = np.asarray(table.astype(jnp.bfloat16).astype(jnp.float32))
    plain = np.asarray(x.astype(jnp.float32)) @ rounded.T + np.arange(5)
    assert logits.dtype == jnp.float32
    # float32 sums in another order.
    np.testing.assert_allclose(logits, 2 * np.tanh(plain / 2), atol=1e-6)
