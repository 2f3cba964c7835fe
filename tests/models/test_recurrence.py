"""Laws of the recurrence: its gradient is autodiff's, its cell is PyTorch's, resets and padding as promised."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.models.projection import project, weight_gradient
from ablax.models.recurrence import lstm

T, B, H, D = 7, 3, 5, 4


def reference(inputs, kernel, state, reset, update):
    """The cell as it is written in papers, differentiated by JAX."""

    def step(state, slices):
        x, reset, update = slices
        start = jax.tree.map(lambda s: jnp.where((reset & update)[:, None], 0, s), state)
        i, f, g, o = jnp.split(x + start[0] @ kernel, 4, axis=-1)
        c = jax.nn.sigmoid(f) * start[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        new = (jax.nn.sigmoid(o) * jnp.tanh(c), c)
        state = jax.tree.map(lambda n, s: jnp.where(update[:, None], n, s), new, state)
        return state, state[0]

    state, outputs = jax.lax.scan(step, state, (inputs, reset, update))
    return outputs, state


def problem(dtype: Any = np.float64) -> tuple[tuple, tuple, tuple]:
    """Random (inputs, kernel, state), (reset, update) with each of the four cases, and weights of the results."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    arguments = normal(T, B, 4 * H), normal(H, 4 * H), (normal(B, H), normal(B, H))
    masks = jnp.asarray(rng.random((T, B)) < 0.3), jnp.asarray(rng.random((T, B)) < 0.7)
    weights = normal(T, B, H), (normal(B, H), normal(B, H))
    return arguments, masks, weights


def results_and_gradients(run, arguments, masks, weights):
    """Outputs, last state and gradients of a random weighting of them."""

    def total(arguments):
        results = run(*arguments, *masks)
        return sum(jax.tree.leaves(jax.tree.map(lambda r, w: (r * w).sum(), results, weights)))

    return jax.jit(lambda a: (run(*a, *masks), jax.grad(total)(a)))(arguments)


def test_gradient_is_autodiffs():
    """Catches: c_to_c of a padded step 0 instead of 1, or a gradient that flows through a reset.

    In float64 both compute the same sums in another order: 7 steps of rounding at 1e-16.
    """
    with jax.enable_x64(True):
        setting = problem()
        got = results_and_gradients(functools.partial(lstm, unroll=3), *setting)
        expected = results_and_gradients(reference, *setting)
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_vmap_is_a_loop():
    """Catches: a rule that mixes up the axes when arms are vmapped (say, flattening T and B by hand)."""
    (inputs, kernel, state), masks, weights = problem(np.float32)
    kernels = jnp.stack([kernel, 2 * kernel])

    @jax.jit
    def gradient(kernel):
        return results_and_gradients(lstm, (inputs, kernel, state), masks, weights)

    together = jax.vmap(gradient)(kernels)
    for n in range(2):
        alone = gradient(kernels[n])
        for ours, theirs in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            # float32 sums of at most T B H terms near 1, in another order.
            np.testing.assert_allclose(ours[n], theirs, rtol=1e-4, atol=1e-4)


def test_bfloat16_computes_in_its_dtype_and_keeps_cells_in_float32():
    """Catches: cells rounded to bfloat16 at each step, or a weight gradient that comes back in bfloat16."""
    (inputs, kernel, state), masks, weights = problem(np.float32)
    arguments = inputs.astype(jnp.bfloat16), kernel, state
    (outputs, after), gradients = results_and_gradients(lstm, arguments, masks, weights)
    assert outputs.dtype == gradients[0].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((after, gradients[1:]))} == {
        jnp.dtype("float32")
    }
    exact, exact_gradients = results_and_gradients(
        reference, (inputs, kernel, state), masks, weights
    )
    # 8 bits of mantissa, a few roundings a step: 0.002 seen, in both.
    np.testing.assert_allclose(after[1], exact[1][1], atol=0.01)
    scale = float(jnp.abs(exact_gradients[1]).max())
    np.testing.assert_allclose(gradients[1], exact_gradients[1], atol=0.01 * scale)
    rounded = after[1].astype(jnp.bfloat16).astype(jnp.float32)
    assert (rounded != after[1]).any()


def test_projection_gradient_is_autodiffs():
    """Catches: a bias gradient that sums one axis only, or dx without the transpose."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        x, kernel, bias, dy = (
            jnp.asarray(rng.normal(size=shape)) for shape in [(T, B, D), (D, H), (H,), (T, B, H)]
        )
        ours = jax.grad(lambda *a: (project(*a) * dy).sum(), (0, 1, 2))
        plain = jax.grad(lambda x, k, b: ((x @ k + b[None, None]) * dy).sum(), (0, 1, 2))
        pairs = jax.jit(lambda *a: list(zip(ours(*a), plain(*a), strict=True)))(x, kernel, bias)
        for got, expected in pairs:
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_weight_gradient_accumulates_in_float32():
    """Catches: sums rounded to bfloat16, in which 2049 is 2048."""
    ones = jnp.ones((683, 3, 1), jnp.bfloat16)
    assert float(weight_gradient(ones, ones)[0, 0]) == 2049.0


def test_equals_torch():
    """Catches: another order of the gates than i, f, g, o, or a second bias counted twice."""
    torch = pytest.importorskip("torch")
    (_, kernel, state), _, weights = problem(np.float32)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(T, B, D)).astype(np.float32)
    kernel_input = rng.normal(size=(D, 4 * H)).astype(np.float32)
    bias = rng.normal(size=4 * H).astype(np.float32)
    always, never = jnp.ones((T, B), bool), jnp.zeros((T, B), bool)

    def run(x, kernel_input, bias, kernel, state):
        return lstm(project(x, kernel_input, bias), kernel, state, never, always)

    arguments = jnp.asarray(x), jnp.asarray(kernel_input), jnp.asarray(bias), kernel, state
    (outputs, after), gradients = results_and_gradients(run, arguments, (), weights)

    layer = torch.nn.LSTM(D, H)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.tensor(kernel_input.T))
        layer.weight_hh_l0.copy_(torch.tensor(np.array(kernel).T))
        layer.bias_ih_l0.copy_(torch.tensor(bias))
        layer.bias_hh_l0.zero_()
    inputs = torch.tensor(x, requires_grad=True)
    h, c = (torch.tensor(np.array(s)[None], requires_grad=True) for s in state)
    theirs, (last_h, last_c) = layer(inputs, (h, c))
    w = jax.tree.map(lambda a: torch.tensor(np.array(a)), weights)
    ((theirs * w[0]).sum() + (last_h[0] * w[1][0]).sum() + (last_c[0] * w[1][1]).sum()).backward()

    pairs = [
        (outputs, theirs.detach()),
        (after[0], last_h[0].detach()),
        (after[1], last_c[0].detach()),
        (gradients[0], inputs.grad),
        (gradients[1], layer.weight_ih_l0.grad.T),
        (gradients[2], layer.bias_ih_l0.grad),
        (gradients[3], layer.weight_hh_l0.grad.T),
        (gradients[4][0], h.grad[0]),
        (gradients[4][1], c.grad[0]),
    ]
    for ours, reference_value in pairs:
        # float32: sums of at most T B terms near 1.
        np.testing.assert_allclose(ours, reference_value.numpy(), rtol=1e-4, atol=2e-5)
