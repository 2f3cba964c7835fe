"""Attention with a sink (Xiao et al. 2023, arXiv:2309.17453): a head may attend to nothing at all."""

import dataclasses

import jax.numpy as jnp

from ablax.config import knob
from ablax.models.attention import MASKED
from ablax.shapes import Array, Bool, Float, typed

Queries = Float[Array, "B T N H"]
Keys = Float[Array, "B S K H"]
Mask = Bool[Array, "#B 1 #T #S"]


@dataclasses.dataclass(frozen=True)
class SinkAttention:
    """softmax over the keys and one more logit, `sink`, whose value is zero."""

    sink: float = knob(0.0, "logit of attending to nothing")

    def build(self):
        """The pure function; a wrong shape fails with the names of the axes and both sizes."""

        @typed
        def attend(query: Queries, key: Keys, value: Keys, *, mask: Mask, bias=None, dropout=None):
            groups = query.shape[2] // key.shape[2]
            key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
            logits = jnp.einsum("BTNH,BSNH->BNTS", query, key, preferred_element_type=jnp.float32)
            logits = logits * query.shape[-1] ** -0.5 + (0 if bias is None else bias)
            logits = jnp.where(mask, logits, MASKED)
            top = jnp.maximum(logits.max(axis=-1, keepdims=True), self.sink)
            weights = jnp.exp(logits - top)
            weights /= weights.sum(axis=-1, keepdims=True) + jnp.exp(self.sink - top)
            if dropout is not None:
                weights = dropout(weights)
            return jnp.einsum("BNTS,BSNH->BTNH", weights.astype(value.dtype), value)

        return attend
