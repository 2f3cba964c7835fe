"""The attention core against a NumPy brute force in float64, the mask rules, rows that see nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.models.attention import (
    ATTENTION,
    DotProductAttention,
    attention_mask,
    masked_softmax,
    window_mask,
)

B, T, S, N, K, H = 2, 3, 5, 4, 2, 6


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """Random queries, keys and values; some pairs forbidden, and row [0, 1] sees nothing."""
    rng = np.random.default_rng(0)
    mask = rng.random((B, 1, T, S)) < 0.6
    mask[..., 0] = True
    mask[0, 0, 1] = False
    return {
        "query": rng.normal(size=(B, T, N, H)).astype(np.float32),
        "key": rng.normal(size=(B, S, K, H)).astype(np.float32),
        "value": rng.normal(size=(B, S, K, H)).astype(np.float32),
        "mask": mask,
        "bias": rng.normal(size=(1, N, T, S)).astype(np.float32),
    }


def brute_force(query, key, value, mask, bias, scale, softcap) -> np.ndarray:
    """Attention pair by pair in float64."""
    output = np.zeros((B, T, N, H))
    for b, t, n in np.ndindex(B, T, N):
        k = n // (N // K)
        allowed = np.flatnonzero(mask[b, 0, t])
        logits = key[b, allowed, k].astype(np.float64) @ query[b, t, n] * scale
        logits = softcap * np.tanh(logits / softcap) if softcap else logits
        weights = np.exp(logits + bias[0, n, t, allowed])
        if len(allowed):
            output[b, t, n] = weights @ value[b, allowed, k] / weights.sum()
    return output


@pytest.mark.parametrize(
    "config",
    [DotProductAttention(), DotProductAttention(scale=1.0), DotProductAttention(softcap=0.7)],
    ids=["default", "scale", "softcap"],
)
def test_core_equals_brute_force(arrays, config):
    """Catches: heads grouped as n % K, bias before the cap, a scale that is ignored."""
    expected = brute_force(**arrays, scale=config.scale or H**-0.5, softcap=config.softcap)
    # float32 against float64, values near 1: 4e-7 seen.
    np.testing.assert_allclose(config.build()(**arrays_of(arrays)), expected, atol=4e-6)


def arrays_of(arrays) -> dict[str, jax.Array]:
    return {name: jnp.asarray(value) for name, value in arrays.items()}


def test_grouped_heads_equal_repeated_heads(arrays):
    """Catches: tiling key/value heads (0 1 0 1) instead of repeating them (0 0 1 1)."""
    inputs = arrays_of(arrays)
    attend = DotProductAttention().build()
    repeated = {name: jnp.repeat(inputs[name], N // K, axis=2) for name in ("key", "value")}
    # The same products, possibly added in another order: float32, values near 1.
    np.testing.assert_allclose(attend(**inputs), attend(**{**inputs, **repeated}), atol=1e-6)


def test_rows_that_see_nothing_are_zero_and_pass_no_gradient(arrays):
    """Catches: a mask of -inf (nan), or a plain softmax (uniform weights, gradient into values)."""
    inputs = arrays_of(arrays)
    attend = DotProductAttention().build()

    def blind_row(parts):
        return attend(**{**inputs, **parts})[0, 1].sum()

    parts = {name: inputs[name] for name in ("query", "key", "value", "bias")}
    value, gradient = jax.value_and_grad(blind_row)(parts)
    assert value == 0
    for name, leaf in gradient.items():
        np.testing.assert_array_equal(leaf, 0, err_msg=name)


def test_masked_softmax_has_the_gradient_of_softmax():
    """Catches: a wrong hand-written derivative."""
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4)), jnp.float32)
    mask = jnp.asarray([[True, True, False, True], [True] * 4])

    def plain(x):
        return jax.nn.softmax(jnp.where(mask, x, -jnp.inf), axis=-1)

    # A few roundings of float32.
    np.testing.assert_allclose(masked_softmax(logits, mask), plain(logits), rtol=1e-6)
    np.testing.assert_allclose(
        jax.jacrev(masked_softmax)(logits, mask), jax.jacrev(plain)(logits), atol=1e-7
    )


def test_softmax_is_float32_under_bfloat16(arrays):
    """Catches: logits or softmax in the compute dtype."""
    inputs = {k: v if k == "mask" else v.astype(jnp.bfloat16) for k, v in arrays_of(arrays).items()}
    del inputs["bias"]
    attend = DotProductAttention().build()
    jaxpr = str(jax.make_jaxpr(lambda i: attend(**i))(inputs))
    assert f"f32[{B},{N},{T},{S}] = exp" in jaxpr
    assert "bf16[2,4,3,5] = exp" not in jaxpr
    assert attend(**inputs).dtype == jnp.bfloat16


def test_dropout_hook_sees_probabilities(arrays):
    """Catches: a hook applied to logits, or its result thrown away."""
    seen = []

    def hook(probabilities):
        seen.append(probabilities)
        return 0 * probabilities

    output = DotProductAttention().build()(**arrays_of(arrays), dropout=hook)
    np.testing.assert_array_equal(output, 0)
    expected = np.ones((B, N, T))
    expected[0, :, 1] = 0
    # float32 sums to 1.
    np.testing.assert_allclose(seen[0].sum(-1), expected, atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 2, 100])
def test_mask_rule_equals_brute_force(causal, window):
    """Catches: < for <=, a window of w + 1 tokens, padding that attends to padding."""
    positions = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3]], np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 0], [3, 3, 1, 1, 1, 1]], np.int32)
    expected = np.zeros((2, 1, 6, 6), bool)
    for b, t, s in np.ndindex(2, 6, 6):
        distance = positions[b, t] - positions[b, s]
        same = segments[b, t] == segments[b, s] != 0
        expected[b, 0, t, s] = same and abs(distance) < window and (distance >= 0 or not causal)
    p, g = jnp.asarray(positions), jnp.asarray(segments)
    mask = attention_mask(p, p, g, g, causal=causal) & window_mask(p, p, jnp.int32(window))
    np.testing.assert_array_equal(mask, expected)


def test_every_core_in_the_table_builds():
    assert {type(cls().build()) for cls in ATTENTION.values()}
    assert all(dataclasses.is_dataclass(cls) for cls in ATTENTION.values())


@pytest.mark.parametrize("field", ["scale", "softcap"])
def test_bad_values_are_refused(field):
    with pytest.raises(RequestError, match=f"attention.{field}=0"):
        DotProductAttention(**{field: 0.0})
