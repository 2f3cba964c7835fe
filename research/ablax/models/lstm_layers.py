"""Parts of the LSTM language model: layer, embedding and head."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ablax.models.layers import dropout
from ablax.models.projection import project
from ablax.models.recurrence import lstm
from ablax.shapes import Array, Bool, Float, typed


def uniform(scale: Array):
    """Initialiser: uniform in (-scale, scale), which may be traced."""
    return lambda key, shape: jax.random.uniform(key, shape, minval=-1, maxval=1) * scale


def _biases(forget_bias: Array):
    """Initialiser of the biases [4H] of i, f, g, o: 0, except forget gates."""
    return lambda key, shape: jnp.zeros((4, shape[0] // 4)).at[1].set(forget_bias).reshape(shape)


class LstmLayer(nn.Module):
    """One layer: all inputs' products at once, then the recurrence.

    Attributes:
      width: H.
      unroll: steps of the forward loop per turn.
    """

    width: int
    unroll: int

    @nn.compact
    @typed
    def __call__(
        self,
        x: Float[Array, "T B D"],
        state: tuple[Float[Array, "B H"], Float[Array, "B H"]],
        reset: Bool[Array, "T B"],
        update: Bool[Array, "T B"],
        hyper: Mapping[str, Any],
        weight_drop: bool,
    ) -> tuple[Float[Array, "T B H"], tuple[Float[Array, "B H"], Float[Array, "B H"]]]:
        """Outputs of all time steps and the state after the last one; see `recurrence.lstm`.

        `weight_drop`: whether the recurrent weights are dropped out.
        """
        spread = uniform(hyper["init_scale"])
        gates = 4 * self.width
        kernel_input = self.param("kernel_input", spread, (x.shape[-1], gates))
        kernel_recurrent = self.param("kernel_recurrent", spread, (self.width, gates))
        bias = self.param("bias", _biases(hyper["forget_bias"]), (gates,))
        if weight_drop:
            key = self.make_rng("dropout")
            kernel_recurrent = dropout(kernel_recurrent, hyper["weight_drop"], key)
        inputs = project(x, kernel_input, bias).astype(x.dtype)
        return lstm(inputs, kernel_recurrent, state, reset, update, self.unroll)


class Embedding(nn.Module):
    """The table of token vectors."""

    rows: int
    width: int

    @nn.compact
    def __call__(self, hyper: Mapping[str, Any]) -> Float[Array, "V D"]:
        return self.param("embedding", uniform(hyper["init_scale"]), (self.rows, self.width))


class Head(nn.Module):
    """Logits in float32, with a kernel of its own or the token embedding, and a bias."""

    vocab_size: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], table: Float[Array, "V D"] | None, hyper: Mapping[str, Any]
    ) -> Float[Array, "B T V"]:
        if table is None:
            shape = (x.shape[-1], self.vocab_size)
            kernel = self.param("head_kernel", uniform(hyper["init_scale"]), shape)
        else:
            kernel = table.T
        bias = self.param("head_bias", nn.initializers.zeros, (self.vocab_size,))
        return project(x, kernel, bias)
