"""Every kernel equals the reference, gradients, windows and packed segments included."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import static, traced
from ablax.models.attention import DENSE, DotProductAttention, Rule
from ablax.models.kernels import KERNELS, attend, splash_attention
from ablax.models.transformer import DecoderConfig

B, T, N, K, H = 2, 6, 4, 2, 8
PACKED = jnp.asarray([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0]])
WHOLE = jnp.asarray([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
# float32 sums of values near 1 in another order, through an exponential: 4e-6 seen.
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)


def positions_of(segments):
    starts = np.ones(segments.shape, bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    place = np.broadcast_to(np.arange(T), segments.shape)
    return jnp.asarray(place - np.maximum.accumulate(np.where(starts, place, 0), axis=1))


@pytest.fixture
def on_this_device(monkeypatch):
    """Kernels as they can run here: cuDNN's arguments go to XLA's form of the same function, splash is interpreted."""
    fused = jax.nn.dot_product_attention

    def emulated(*arrays, implementation, **options):
        return fused(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", emulated)
    return {
        **KERNELS,
        "splash": dataclasses.replace(
            KERNELS["splash"], attend=functools.partial(splash_attention, interpret=True)
        ),
    }


def results(function):
    """Outputs and gradients of queries, keys and values for random inputs."""
    rng = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)
    *inputs, weights = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)

    def total(query, key, value):
        output = function(query, key, value)
        return jnp.sum(output * weights), output

    (_, output), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(
        *inputs
    )
    return output, *gradients


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
@pytest.mark.parametrize("name", list(KERNELS))
def test_every_kernel_equals_the_reference(name, causal, on_this_device):
    """Catches: a window of w + 1, segments or padding that are not read, heads grouped otherwise, a scale left out.

    The layer is the second of two with different windows, so the one that differs is chosen while the program runs.
    """
    kernel = on_this_device[name]
    segments = WHOLE if kernel.whole_rows else PACKED
    points = positions_of(segments)
    rule = Rule(points, points, segments, segments, causal)
    core = DotProductAttention(scale=0.5, softcap=3.0 if name == "splash" else None)
    windows = (DENSE, DENSE if kernel.whole_rows and not causal else 2)

    def fast(query, key, value):
        window = jnp.asarray(windows)[1]
        return attend(kernel, core, query, key, value, rule, None, windows, window)

    def slow(query, key, value):
        mask = rule.replace(window=windows[1]).mask()
        return core.build()(query, key, value, mask=mask)

    for got, expected in zip(results(fast), results(slow), strict=True):
        close(got, expected)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
@pytest.mark.parametrize("name", ["cudnn", "cudnn_rows"])
def test_cudnn_equals_the_reference(name):
    """The same on the device itself, in bfloat16, whose 8 bits of mantissa put values near 1 at distances of 2^-8.

    The tolerance leaves room for some twelve such roundings; no GPU was at hand to measure how many there are.
    """
    segments = WHOLE if KERNELS[name].whole_rows else PACKED
    points = positions_of(segments)
    rule, core = Rule(points, points, segments, segments, True), DotProductAttention()

    def fast(*inputs):
        halves = [x.astype(jnp.bfloat16) for x in inputs]
        return attend(KERNELS[name], core, *halves, rule, None, (DENSE,), None).astype(jnp.float32)

    for got, expected in zip(
        results(fast), results(lambda *x: core.build()(*x, mask=rule.mask())), strict=True
    ):
        close(got, expected, atol=5e-2)


def test_a_model_with_a_kernel_that_reads_the_rule_makes_no_mask():
    """Catches: a mask [B 1 T T] that is made although nobody reads it; a kernel that the model never calls."""
    given = DecoderConfig(num_layers=2, width=16, num_heads=2, attention_pattern=(3,), unroll=1)
    hyper, points = jax.tree.map(jnp.float32, traced(given)), positions_of(PACKED)
    params = jax.eval_shape(
        lambda key: static(given).build(9, T).init(key, PACKED, points, PACKED, hyper=hyper),
        jax.random.key(0),
    )

    def program(name):
        module = static(dataclasses.replace(given, attention_kernel=name)).build(9, T)
        apply = functools.partial(module.apply, hyper=hyper)
        return str(jax.make_jaxpr(apply)(params, PACKED, points, PACKED))

    for name in ("reference", "splash"):
        assert (f"bool[{B},1,{T},{T}]" in program(name)) == (name == "reference")
        assert ("pallas_call" in program(name)) == (name == "splash")
