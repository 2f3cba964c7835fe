"""Attention: who may attend to whom, and the cores that turn queries, keys and values into outputs.

A core is the part that variants replace. Its config class is an entry of `ATTENTION`, or a user's own `module:Name`: a
frozen dataclass whose `build()` returns a pure function, see `Core`. Its knobs are constants of the program, so none
of them may be marked `traced`.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct

from ablax.config import RequestError, knob
from ablax.shapes import Array, Bool, Float, Int, typed

MASKED = -1e30
"""Logit of a pair that may not attend: finite, so that rows without any allowed pair stay finite."""

DENSE = 2**30
"""The window of a layer without one: more tokens than any sequence has."""


class Core(Protocol):
    """What `build()` of an attention config returns.

    N is a multiple of K: query head n reads key/value head n // (N / K). `mask` is True where a
    query may attend; `bias` is added to the logits. `dropout`, when given, must be applied to the
    probabilities [B N T S]: it drops some, or records them for interpretation; a core that never
    forms them refuses it. Softmax is taken in float32, the output has the dtype of `value`. A query
    that may attend to nothing (padding) must give a finite output and no gradient.
    """

    def __call__(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        value: Float[Array, "B S K H"],
        *,
        mask: Bool[Array, "#B 1 #T #S"],
        bias: Float[Array, "#B N T S"] | None = None,
        dropout: Callable[[Array], Array] | None = None,
    ) -> Float[Array, "B T N H"]: ...


@typed
def attention_mask(
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    *,
    causal: bool,
) -> Bool[Array, "B 1 T S"]:
    """True where a query may attend to a key: same segment, not padding (0), and, if causal, not later.

    The same rule serves training, packed documents and cached decoding, where empty slots have
    segment 0.
    """
    queries, keys = query_segments[:, :, None], key_segments[:, None, :]
    mask = (queries == keys) & (keys != 0)
    if causal:
        mask &= key_positions[:, None, :] <= query_positions[:, :, None]
    return mask[:, None]


@typed
def window_mask(
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    window: int | Int[Array, ""],
) -> Bool[Array, "B 1 T S"]:
    """True where a key is less than `window` tokens away from the query (the query itself counts as one)."""
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    return (jnp.abs(distance) < window)[:, None]


class Rule(struct.PyTreeNode):
    """Who may attend to whom, said without a mask [B 1 T S].

    Attributes:
      causal: whether later keys are hidden.
      window: in tokens (see `window_mask`), or None.
    """

    query_positions: Int[Array, "B T"]
    key_positions: Int[Array, "B S"]
    query_segments: Int[Array, "B T"]
    key_segments: Int[Array, "B S"]
    causal: bool = struct.field(pytree_node=False)
    window: int | None = struct.field(pytree_node=False, default=None)

    def mask(self) -> Bool[Array, "B 1 T S"]:
        """The same as a mask: see `attention_mask` and `window_mask`."""
        points = self.query_positions, self.key_positions
        segments = self.query_segments, self.key_segments
        mask = attention_mask(*points, *segments, causal=self.causal)
        return mask if self.window is None else mask & window_mask(*points, self.window)


@jax.custom_jvp
def masked_softmax(
    logits: Float[Array, "*B T S"], mask: Bool[Array, "*#B T S"]
) -> Float[Array, "*B T S"]:
    """Softmax over the allowed keys; a row that allows none is all zeros and passes no gradient."""
    logits = jnp.where(mask, logits, MASKED)
    # Starting the maximum above MASKED makes exp(MASKED - maximum) exactly zero in rows that allow
    # nothing.
    maximum = jnp.max(logits, axis=-1, keepdims=True, initial=MASKED / 2)
    weights = jnp.exp(logits - maximum)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.maximum(total, jnp.finfo(logits.dtype).tiny)


@masked_softmax.defjvp
def _masked_softmax_jvp(primals, tangents):
    probabilities = masked_softmax(*primals)
    weighted = probabilities * tangents[0]
    return probabilities, weighted - probabilities * jnp.sum(weighted, axis=-1, keepdims=True)


@typed
def dot_product_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    mask: Bool[Array, "#B 1 #T #S"],
    bias: Float[Array, "#B N T S"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) with grouped heads (arXiv:2305.13245).

    The plain formulation: the truth against which every faster path is tested. See `Core` and
    `DotProductAttention`.
    """
    batch, length, heads, head_width = query.shape
    kv_heads = key.shape[2]
    scale = head_width**-0.5 if scale is None else scale
    grouped = (query * jnp.asarray(scale, query.dtype)).reshape(
        batch, length, kv_heads, heads // kv_heads, head_width
    )
    # float32 from here: a bfloat16 logit of 30 is off by 0.1, a bfloat16 sum over S keys by far
    # more.
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, key, preferred_element_type=jnp.float32)
    logits = logits.reshape(batch, heads, length, -1)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias
    probabilities = masked_softmax(logits, mask)
    if dropout is not None:
        probabilities = dropout(probabilities)
    probabilities = probabilities.astype(value.dtype).reshape(
        batch, kv_heads, heads // kv_heads, length, -1
    )
    output = jnp.einsum("BKGTS,BSKH->BTKGH", probabilities, value)
    return output.reshape(batch, length, heads, head_width)


@dataclasses.dataclass(frozen=True)
class DotProductAttention:
    """Scaled dot-product attention, written as two einsums and a softmax."""

    scale: float | None = knob(
        None, "factor on query . key; none = 1 / sqrt(head width) (T5 uses 1.0)"
    )
    softcap: float | None = knob(
        None,
        "logits are squashed to (-softcap, softcap) by tanh, before the mask (arXiv:2408.00118); none = off",
    )

    def __post_init__(self):
        if self.scale is not None and self.scale <= 0:
            raise RequestError(
                f"attention.scale={self.scale} must be above 0; none means 1/sqrt(head width)"
            )
        if self.softcap is not None and self.softcap <= 0:
            raise RequestError(
                f"attention.softcap={self.softcap} must be above 0; none switches it off"
            )

    def build(self) -> Core:
        """The pure function: see `Core` for its arguments, shapes and obligations."""

        def attend(query, key, value, *, mask, bias=None, dropout=None):
            return dot_product_attention(
                query,
                key,
                value,
                mask=mask,
                bias=bias,
                dropout=dropout,
                scale=self.scale,
                softcap=self.softcap,
            )

        return attend


ATTENTION = {"dot_product": DotProductAttention}
