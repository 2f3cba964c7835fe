"""Sigmoid attention: each key is weighed on its own, without a softmax over the others."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ablax.config import RequestError, knob
from ablax.shapes import Array, Bool, Float, typed


@dataclasses.dataclass(frozen=True)
class SigmoidAttention:
    """sigmoid(query . key / sqrt(H) - log n) for n visible keys (Ramapuram et al. 2024, arXiv:2409.04431)."""

    scale: float = knob(1.0, "factor on query . key / sqrt(head width)")

    def __post_init__(self):
        if self.scale <= 0:
            raise RequestError(f"scale={self.scale} must be above 0")

    def build(self):
        """The pure function. `typed` checks its shapes while a program is traced: a wrong one fails with the names
        of the axes and both sizes, and checking costs nothing afterwards."""

        @typed
        def attend(
            query: Float[Array, "B T N H"],
            key: Float[Array, "B S K H"],
            value: Float[Array, "B S K H"],
            *,
            mask: Bool[Array, "#B 1 #T #S"],
            bias: Float[Array, "#B N T S"] | None = None,
            dropout: Callable[[Array], Array] | None = None,
        ) -> Float[Array, "B T N H"]:
            groups = query.shape[2] // key.shape[2]
            key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
            logits = jnp.einsum("BTNH,BSNH->BNTS", query, key, preferred_element_type=jnp.float32)
            logits = logits * self.scale * query.shape[-1] ** -0.5
            if bias is not None:
                logits = logits + bias
            visible = jnp.maximum(mask.sum(axis=-1, keepdims=True), 1).astype(jnp.float32)
            weights = jnp.where(mask, jax.nn.sigmoid(logits - jnp.log(visible)), 0.0)
            if dropout is not None:
                weights = dropout(weights)
            return jnp.einsum("BNTS,BSNH->BTNH", weights.astype(value.dtype), value)

        return attend
