"""The Transformer block, which decoder and encoder share."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct

from ablax.models.attention import Rule, window_mask
from ablax.models.cache import Slots, write_layer
from ablax.models.kernels import attend, kernel_of
from ablax.models.layers import dropout, make_linear, make_norm
from ablax.models.positions import Rotation, rotate
from ablax.placement import constrain
from ablax.shapes import Array, Bool, Float, Int, typed

if TYPE_CHECKING:
    from ablax.models.transformer import TransformerConfig

INIT_STD = 0.02
"""Standard deviation of initial weights in GPT-2 and BERT, times the knob `init_scale`."""


class Context(struct.PyTreeNode):
    """What all layers of one forward pass see alike.

    Attributes:
      hyper: traced knobs by name.
      rule: who may attend to whom, but for windows that differ between layers.
      mask: the same as a mask, once for all layers; None where a kernel reads the rule.
      rotation: of queries and keys, or None.
      bias: on attention logits, or None.
      slots: where a cache keeps these tokens, or None without one.
      train: whether dropout acts.
    """

    hyper: Mapping[str, Any]
    rule: Rule
    mask: Bool[Array, "B 1 T S"] | None
    rotation: Rotation | None
    bias: Float[Array, "B N T S"] | None
    slots: Slots | None
    train: bool = struct.field(pytree_node=False)


class Layer(struct.PyTreeNode):
    """What differs between layers: the number [], and the attention window [] in tokens (None: all alike)."""

    number: Int[Array, ""]
    window: Int[Array, ""] | None


class SelfAttention(nn.Module):
    """Multi-head attention with grouped key/value heads around an exchangeable core."""

    config: "TransformerConfig"

    @nn.compact
    @typed
    def __call__(
        self, x: Float[Array, "*rows D"], cache: tuple, layer: Layer, context: Context
    ) -> tuple[Float[Array, "*rows D"], tuple]:
        """Returns the output before the residual addition, and the stacked (keys, values) with new slots filled.

        `cache` is `()` for attention within x, else the stacks [L B S K H].
        """
        config = self.config
        std, growth = INIT_STD * context.hyper["init_scale"], config.growth
        heads, kv_heads, head_width = config.num_heads, config.kv_heads, config.width_per_head

        def project(name: str, count: int) -> Array:
            std_in = std / growth.width**0.5
            y = make_linear(count * head_width, config.qkv_biased, config.dtype, std_in, name)(x)
            return y.reshape(*context.rule.query_positions.shape, count, head_width)

        query, key = project("query", heads), project("key", kv_heads)
        value = project("value", kv_heads)
        if config.query_key_norm:
            query, key = self._norm("query_norm")(query), self._norm("key_norm")(key)
        if context.rotation is not None:
            query, key = rotate(query, context.rotation), rotate(key, context.rotation)
        if growth.head != 1:
            # The core divides by the root of the head width H, muP by H itself.
            query = query * jnp.asarray(growth.head**-0.5, query.dtype)
        query = constrain(query, "B T N H")
        key, value = constrain(key, "B S K H"), constrain(value, "B S K H")
        if cache:
            assert context.slots is not None
            keys, key = write_layer(cache[0], key, layer.number, context.slots)
            values, value = write_layer(cache[1], value, layer.number, context.slots)
            cache = (keys, values)
        output = self._attend(query, key, value, bool(cache), layer, context)
        output = constrain(output, "B T N H").reshape(*x.shape[:-1], heads * head_width)
        output_std = std * config.residual_init / growth.attention**0.5
        out = make_linear(x.shape[-1], config.out_biased, config.dtype, output_std, "out")
        return out(output), cache

    def _attend(self, query, key, value, cached: bool, layer: Layer, context: Context) -> Array:
        config, rule, hook = self.config, context.rule, self._hook(context)
        kernel = None if cached or hook else kernel_of(config, context.train)
        if kernel is not None and not self.is_initializing():
            windows = config.windows, layer.window
            return attend(kernel, config.attention, query, key, value, rule, context.bias, *windows)
        mask = rule.mask() if context.mask is None else context.mask
        if layer.window is not None:
            mask &= window_mask(rule.query_positions, rule.key_positions, layer.window)
        return config.attention.build()(
            query, key, value, mask=mask, bias=context.bias, dropout=hook
        )

    def _norm(self, name: str) -> nn.Module:
        config = self.config
        return make_norm(config.norm, config.norm_epsilon, config.bias, config.dtype, name)

    def _hook(self, context: Context) -> Callable[[Array], Array] | None:
        """Dropout and recording of the probabilities; None, so that nothing is emitted, when neither is wanted."""
        record = self.is_mutable_collection("intermediates")
        drop = context.train and self.config.attention_dropout != 0
        if not record and not drop:
            return None
        key = self.make_rng("dropout") if drop else None

        def hook(probabilities: Array) -> Array:
            if record:
                self.sow("intermediates", "probabilities", probabilities)
            if key is None:
                return probabilities
            return dropout(probabilities, context.hyper["attention_dropout"], key)

        return hook


class Block(nn.Module):
    """Attention and feed-forward network, each with a residual path and a norm before it or after the addition."""

    config: "TransformerConfig"

    @nn.compact
    def __call__(
        self, carry: tuple[Float[Array, "*rows D"], tuple], layer: Layer, context: Context
    ) -> tuple[tuple[Float[Array, "*rows D"], tuple], None]:
        """One layer, in the form that `nn.scan` wants: ((x, cache), layer, context) -> ((x, cache), None)."""
        config = self.config
        x, cache = carry
        before = x
        std, growth = INIT_STD * context.hyper["init_scale"], config.growth

        attention = SelfAttention(config, name="attention")
        norm = self._norm("attention_norm")
        y, cache = attention(norm(x) if config.pre_norm else x, cache, layer, context)
        x = x + self._dropout(y, "residual_dropout", context)
        x = x if config.pre_norm else norm(x)

        mlp = config.feedforward.build(config)
        norm = self._norm("mlp_norm")
        stds = std / growth.width**0.5, std * config.residual_init / growth.inner**0.5
        inputs = before if config.parallel_residual else x
        y = mlp(norm(inputs) if config.pre_norm else inputs, *stds, context)
        x = x + self._dropout(y, "mlp_dropout", context)
        x = x if config.pre_norm else norm(x)

        x = constrain(x, "*rows D")
        shape = (*context.rule.query_positions.shape, config.width)
        self.sow("intermediates", "output", x.reshape(shape))
        return (x, cache), None

    def _norm(self, name: str) -> nn.Module:
        config = self.config
        return make_norm(config.norm, config.norm_epsilon, config.bias, config.dtype, name)

    def _dropout(self, x: Array, knob: str, context: Context) -> Array:
        if not context.train or getattr(self.config, knob) == 0:
            return x
        return dropout(x, context.hyper[knob], self.make_rng("dropout"))
