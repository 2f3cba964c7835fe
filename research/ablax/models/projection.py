"""A matrix product over all positions whose weight gradient is laid out for the CPU."""

import jax
import jax.numpy as jnp

from ablax.shapes import Array, Float, typed


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """float32 for float32 and anything narrower."""
    return jnp.promote_types(dtype, jnp.float32)


def weight_gradient(x: Array, dy: Array) -> Array:
    """The sum over the first two axes of outer products: x [T B D], dy [T B G] -> [D G], accumulated in float32.

    JAX's own rule computes [G D] and transposes it, which takes XLA 2 to 4 times as long on a CPU. The barrier makes
    XLA write the transpose of x once instead of reading x across its rows; two contracted axes rather than one of
    T x B leave either of them free to be sharded.
    """
    transposed = jax.lax.optimization_barrier(jnp.moveaxis(x, -1, 0))
    return jax.lax.dot_general(
        transposed,
        dy.astype(x.dtype),
        (((1, 2), (0, 1)), ((), ())),
        preferred_element_type=accumulation_dtype(x.dtype),
    )


@jax.custom_vjp
def _project(x: Array, kernel: Array, bias: Array) -> Array:
    product = jnp.matmul(
        x, kernel.astype(x.dtype), preferred_element_type=accumulation_dtype(x.dtype)
    )
    return product + bias[None, None]


def _forward(x: Array, kernel: Array, bias: Array):
    return _project(x, kernel, bias), (x, kernel)


def _backward(residuals, dy: Array):
    x, kernel = residuals
    dx = dy.astype(x.dtype) @ kernel.T.astype(x.dtype)
    return dx, weight_gradient(x, dy).astype(kernel.dtype), dy.sum((0, 1))


_project.defvjp(_forward, _backward)


@typed
def project(
    x: Float[Array, "T B D"], kernel: Float[Array, "D G"], bias: Float[Array, "G"]
) -> Float[Array, "T B G"]:
    """`x @ kernel + bias`, computed in the dtype of x and accumulated, and returned, in float32.

    Args:
      x: features; the order of its first two axes does not matter.
      kernel, bias: float32 parameters, whose gradients are accumulated in float32 too.
    """
    return _project(x, kernel, bias)
