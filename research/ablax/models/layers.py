"""Small layers of the Transformer: embeddings, norms, feed-forward networks and dropout."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ablax.placement import constrain
from ablax.shapes import Array, Float, Int, typed

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu", "geglu_tanh"]


def _gelu(x: Array) -> Array:
    # By erf: the erfc of jax.nn.gelu matters only where the result is below 1e-7, and costs 1.7x on
    # CPU.
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
GATED = {"swiglu": jax.nn.silu, "geglu": _gelu, "geglu_tanh": jax.nn.gelu}
"""The activation of the gate in gated linear units (arXiv:2002.05202)."""

NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}


@typed
def dropout(
    x: Float[Array, "*S"], rate: float | Float[Array, ""], key: Array
) -> Float[Array, "*S"]:
    """Zeroes each element with probability `rate` (which may be traced) and scales the others by 1 / (1 - rate)."""
    keep = jax.random.uniform(key, x.shape) >= rate
    # In float32: in bfloat16 1 - 0.1 is 0.8984, which would make everything kept 0.2 % too large.
    # Dividing last lets a nan rate, the mark of a traced knob used as a constant, poison the result.
    return (jnp.where(keep, x, 0) / (1 - jnp.asarray(rate, jnp.float32))).astype(x.dtype)


def make_norm(
    kind: str, epsilon: float, bias: bool, dtype: str, name: str | None = None
) -> nn.Module:
    """LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467) over the last axis, statistics in float32."""
    # E[x^2] - E[x]^2, flax's default, cancels where the mean is large.
    extra = {"use_bias": bias, "use_fast_variance": False} if kind == "layernorm" else {}
    return NORMS[kind](epsilon=epsilon, dtype=jnp.dtype(dtype), name=name, **extra)


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    return x @ kernel.astype(x.dtype)


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel), (x, kernel)


def _product_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    d_kernel = jax.lax.dot_general(
        x, dy, ((rows, rows), ((), ())), preferred_element_type=kernel.dtype
    )
    return dy @ kernel.T.astype(dy.dtype), d_kernel


_product.defvjp(_product_forward, _product_backward)


class NarrowLinear(nn.Module):
    """`nn.Dense` in bfloat16 whose kernel and bias get gradients that were summed, and stay, in float32.

    Those of `nn.Dense` pass through the casts of its parameters: they are sums over all tokens, rounded to bfloat16,
    and of the bias even added in it.
    """

    features: int
    use_bias: bool
    std: float | Array

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows F"]:
        """x times the kernel, plus the bias, in bfloat16."""
        init = nn.initializers.normal(self.std)
        y = _product(
            x.astype(jnp.bfloat16), self.param("kernel", init, (x.shape[-1], self.features))
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = (y.astype(bias.dtype) + jnp.broadcast_to(bias, y.shape)).astype(y.dtype)
        return y


def make_linear(
    features: int, bias: bool, dtype: str, std: float | Array, name: str | None = None
) -> nn.Module:
    """A matrix product, kernel [in, out] initialised with normal(std), which may be traced."""
    if dtype == "bfloat16":
        return NarrowLinear(features, bias, std, name=name)
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=jnp.dtype(dtype),
        kernel_init=nn.initializers.normal(std),
        name=name,
    )


class Table(nn.Module):
    """A table of vectors, one a row; a module of its own so that input and output can share it."""

    rows: int
    width: int

    @nn.compact
    @typed
    def __call__(self, std: float | Array) -> Float[Array, "V D"]:
        """The table, created with normal(std)."""
        return self.param("embedding", nn.initializers.normal(std), (self.rows, self.width))


@typed
def lookup(table: Float[Array, "V D"], rows: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
    """The rows of a table."""
    # Over a mesh the width is gathered first: XLA would otherwise exchange every row that is looked up.
    return jnp.take(constrain(table, "V D"), rows, axis=0)


class FeedForward(nn.Module):
    """Two matrix products with an activation between them, or three with a gate: (act(x G) * x I) O.

    Attributes:
      inner_width: F.
      activation: a key of ACTIVATIONS or GATED.
    """

    inner_width: int
    activation: Activation
    bias: bool
    dtype: str

    @nn.compact
    @typed
    def __call__(
        self,
        x: Float[Array, "*rows D"],
        std: float | Array,
        output_std: float | Array,
        context: Any = None,
    ) -> Float[Array, "*rows D"]:
        """Kernels are created with normal(std), the last one with normal(output_std).

        `context`: what other kinds of feed-forward layers want to know (see `experts.Experts`).
        """
        del context
        inner = make_linear(self.inner_width, self.bias, self.dtype, std, "in")(x)
        if self.activation in GATED:
            gate = make_linear(self.inner_width, self.bias, self.dtype, std, "gate")(x)
            inner = GATED[self.activation](gate) * inner
        else:
            inner = ACTIVATIONS[self.activation](inner)
        inner = constrain(inner, "*rows F")
        return make_linear(x.shape[-1], self.bias, self.dtype, output_std, "out")(inner)
