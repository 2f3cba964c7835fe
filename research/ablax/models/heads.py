"""The vocabulary head: from features to float32 logits."""

import flax.linen as nn
import jax.numpy as jnp

from ablax.models.layers import ACTIVATIONS, make_linear, make_norm
from ablax.placement import constrain
from ablax.shapes import Array, Float, typed


class VocabularyHead(nn.Module):
    """Logits over the vocabulary, with the embedding table (tied, arXiv:1608.05859) or a kernel of its own.

    Attributes:
      vocab_size: V.
      transform: first a linear layer, GELU and a norm, as BERT's masked-token head has.
      bias: add a vector [V].
      softcap: squash logits to (-softcap, softcap) by tanh (arXiv:2408.00118).
      growth: of the model's width in muP, by which logits are divided (arXiv:2203.03466, table 8).
    """

    vocab_size: int
    transform: bool
    bias: bool
    softcap: float | None
    norm: str
    norm_epsilon: float
    dtype: str
    growth: float = 1.0

    @nn.compact
    @typed
    def __call__(
        self,
        features: Float[Array, "*rows D"],
        table: Float[Array, "V D"] | None,
        std: float | Array,
    ) -> Float[Array, "*rows V"]:
        """Logits in float32. `table` is the tied embedding, None for an untied head; `std` is for initialisation."""
        if self.transform:
            inner_std = std / self.growth**0.5
            inner = make_linear(features.shape[-1], True, self.dtype, inner_std, "transform")
            features = inner(features)
            features = ACTIVATIONS["gelu"](features)
            features = make_norm(self.norm, self.norm_epsilon, True, self.dtype, "norm")(features)
        if table is None:
            shape = (features.shape[-1], self.vocab_size)
            kernel = self.param("kernel", nn.initializers.normal(std), shape)
            equation = "...D,DV->...V"
        else:
            kernel, equation = table, "...D,VD->...V"
        kernel = kernel.astype(features.dtype)
        # Accumulated and kept in float32: the loss subtracts a log-sum over V from one of them.
        logits = jnp.einsum(equation, features, kernel, preferred_element_type=jnp.float32)
        if self.growth != 1:
            logits = logits / self.growth
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))
            logits = logits + jnp.broadcast_to(bias, logits.shape)
        if self.softcap is not None:
            logits = self.softcap * jnp.tanh(logits / self.softcap)
        return constrain(logits, "*rows V")
