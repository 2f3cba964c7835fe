"""One LSTM layer over time, with a gradient that leaves one matrix product for the end.

The cell is Hochreiter & Schmidhuber's with forget gates (Gers et al. 2000; Zaremba et al. 2014, arXiv:1409.2329,
section 3): i, f, g, o = split(inputs + h kernel); c' = f c + i g; h' = o tanh(c'), all four gates in one product,
in the order of torch.nn.LSTM. Everything is time-major.

Backward, the loop over time computes gradients of the gates only. What they need from the forward pass is elementwise
and is prepared for all steps at once before the loop; the kernel's gradient is one product over all steps after it
(Appleyard et al. 2016, arXiv:1604.01946, section 3.3, do the same for cuDNN).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ablax.models.projection import accumulation_dtype, weight_gradient
from ablax.shapes import Array, Bool, Float, typed

State = tuple[Float[Array, "B H"], Float[Array, "B H"]]
"""Output h and cell c; float32 whatever the compute dtype."""


def _gates(x: Array) -> Array:
    """Activations of the gates [B 4 H]: sigmoid, except tanh for g.

    One tanh for all four, sigmoid(x) = (1 + tanh(x / 2)) / 2: a single loop over [B 4 H] on the CPU.
    """
    scale = jnp.array([0.5, 0.5, 1.0, 0.5], x.dtype)[None, :, None]
    return jnp.tanh(x * scale) * scale + (1 - scale)


def _scan(inputs, kernel, h, c, keep, update, unroll):
    """The forward pass. Returns the last (h, c) and, for each step, h, c and the activations of the gates."""
    _, B, G = inputs.shape
    wide = accumulation_dtype(inputs.dtype)
    kernel = kernel.astype(inputs.dtype)

    def step(state, slices):
        h, c = state
        x, keep, update = slices
        product = jnp.matmul(h, kernel, preferred_element_type=wide)
        # A reset row of h gives a zero row of the product: masking here costs no pass of its own.
        gates = _gates((x + jnp.where(keep, product, 0)).reshape(B, 4, G // 4))
        i, f, g, o = (gates[:, n] for n in range(4))
        new_c = f * jnp.where(keep, c, 0) + i * g
        new_h = (o * jnp.tanh(new_c)).astype(h.dtype)
        h, c = jnp.where(update, new_h, h), jnp.where(update, new_c, c)
        return (h, c), (h, c, gates.astype(h.dtype))

    initial = (h.astype(inputs.dtype), c.astype(wide))
    return jax.lax.scan(step, initial, (inputs, keep, update), unroll=min(unroll, len(inputs)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _lstm(inputs, kernel, h, c, keep, update, unroll):
    return _forward(inputs, kernel, h, c, keep, update, unroll)[0]


def _forward(inputs, kernel, h, c, keep, update, unroll):
    (last_h, last_c), (outputs, cells, gates) = _scan(inputs, kernel, h, c, keep, update, unroll)
    result = outputs, last_h.astype(h.dtype), last_c.astype(c.dtype)
    return result, (kernel, h, c, outputs, cells, gates, keep, update)


def _before(first: Array, states: Array, keep: Array) -> Array:
    """The state that each step started from: the one before it, or zero where it was reset."""
    previous = jnp.concatenate([first[None].astype(states.dtype), states[:-1]])
    return jnp.where(keep, previous, 0)


def _factors(cells, previous_cells, gates, keep, update):
    """What the gradient of each step is multiplied by, for all steps at once.

    Returns:
      into_gates [T B 4 H]: d gate / d its input, times what the gate multiplies (i, f, g towards c; o towards h).
      h_to_c [T B H]: d h / d c.
      c_to_c [T B H]: d c / d the c before.
    """
    wide = cells.dtype
    i, f, g, o = (gates[:, :, n].astype(wide) for n in range(4))
    squashed = jnp.tanh(cells)
    into_gates = jnp.stack(
        [
            g * i * (1 - i),
            previous_cells * f * (1 - f),
            i * (1 - g * g),
            squashed * o * (1 - o),
        ],
        axis=2,
    )
    into_gates = jnp.where(update[..., None], into_gates, 0)
    h_to_c = jnp.where(update, o * (1 - squashed * squashed), 0)
    c_to_c = jnp.where(update, jnp.where(keep, f, 0), 1)
    return into_gates, h_to_c, c_to_c


def _backward(unroll, residuals, cotangents):
    kernel, h, c, outputs, cells, gates, keep, update = residuals
    d_outputs, d_h, d_c = cotangents
    dtype, wide = outputs.dtype, cells.dtype
    _, B, H = outputs.shape
    factors = _factors(cells, _before(c, cells, keep), gates, keep, update)
    # Without the barrier XLA folds the transpose into each step's product, which then reads across the rows.
    transposed = jax.lax.optimization_barrier(kernel.T.astype(dtype))
    towards_cell = (jnp.arange(4) < 3)[None, :, None]

    def step(state, slices):
        d_h, d_c = state
        d_output, (into_gates, h_to_c, c_to_c), keep, update = slices
        d_h = d_h + d_output
        d_c = d_c + d_h * h_to_c
        d_gates = jnp.where(towards_cell, d_c[:, None], d_h[:, None]) * into_gates
        d_gates = d_gates.reshape(B, 4 * H).astype(dtype)
        product = jnp.matmul(d_gates, transposed, preferred_element_type=wide)
        d_h = jnp.where(keep, product, 0) + jnp.where(update, 0, d_h)
        return (d_h, d_c * c_to_c), d_gates

    # Not unrolled: measured to be slower on the CPU.
    (d_first_h, d_first_c), d_gates = jax.lax.scan(
        step,
        (d_h.astype(wide), d_c.astype(wide)),
        (d_outputs, factors, keep, update),
        reverse=True,
    )
    d_kernel = weight_gradient(_before(h, outputs, keep), d_gates).astype(kernel.dtype)
    return d_gates, d_kernel, d_first_h.astype(h.dtype), d_first_c.astype(c.dtype), None, None


_lstm.defvjp(_forward, _backward)


@typed
def lstm(
    inputs: Float[Array, "T B G"],
    kernel: Float[Array, "H G"],
    state: State,
    reset: Bool[Array, "T B"],
    update: Bool[Array, "T B"],
    unroll: int = 2,
) -> tuple[Float[Array, "T B H"], State]:
    """Runs the cell over time. Differentiable in reverse mode with respect to inputs, kernel and state.

    Args:
      inputs: the input's part of the gates i, f, g, o with their biases, G = 4 H; its dtype is computed in, cells
        are kept and sums accumulated in float32.
      kernel: the recurrent weights, float32.
      state: h and c before the first step.
      reset: where a row starts afresh, from h = c = 0.
      update: where a row takes this step; elsewhere (padding) h and c stay as they are, reset or not.
      unroll: steps of the forward loop per turn.

    Returns:
      h after each step, in the dtype of inputs; h and c after the last one.
    """
    result: Any = _lstm(inputs, kernel, *state, ~reset[..., None], update[..., None], unroll)
    outputs, h, c = result
    return outputs, (h, c)
