"""Analytic costs of a model: floating-point operations and parameters."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from ablax.config import traced
from ablax.models.feedforward import ExpertsConfig
from ablax.models.layers import GATED
from ablax.models.lstm import LstmConfig
from ablax.models.transformer import TransformerConfig


def forward_flops_per_token(
    config: Any, vocab_size: int, length: int, predicted: float = 1.0
) -> float | None:
    """Operations of all matrix products per token of a row of `length`; a multiplication and an addition are two.

    Attention counts every pair of the T x T square, as the reference computes it, masked or not; a mixture of experts
    the experts that a token visits. Norms, activations and softmax are left out, as usual (arXiv:2001.08361, section
    2.1): under 2 % at common sizes.

    Args:
      predicted: share of the positions whose logits are computed.

    Returns:
      None for a model that is not known here.
    """
    if isinstance(config, TransformerConfig):
        return _transformer(config, vocab_size, length, predicted)
    return _lstm(config, vocab_size, predicted) if isinstance(config, LstmConfig) else None


def _lstm(config: LstmConfig, vocab_size: int, predicted: float) -> float:
    widths = config.layer_widths
    inputs = (config.width, *widths)
    layers = sum(4 * width * (before + width) for before, width in zip(inputs, widths))
    return 2.0 * (layers + predicted * widths[-1] * vocab_size)


def _transformer(
    config: TransformerConfig, vocab_size: int, length: int, predicted: float
) -> float:
    width, heads = config.width, config.num_heads * config.width_per_head
    projections = 2 * width * heads + 2 * width * config.kv_heads * config.width_per_head
    scores = 2 * length * heads
    matrices = 3 if config.activation in GATED else 2
    feedforward = matrices * width * config.inner_width
    if isinstance(experts := config.feedforward, ExpertsConfig):
        feedforward = experts.experts_per_token * feedforward + width * experts.num_experts
    head = width * vocab_size + (width**2 if config.head_transform else 0)
    layers = config.num_layers * (projections + scores + feedforward)
    return 2.0 * (layers + predicted * head)


def training_flops_per_token(
    config: Any, vocab_size: int, length: int, predicted: float = 1.0
) -> float | None:
    """Three times the forward pass: each product has two more in its gradient. Recomputation does not count."""
    forward = forward_flops_per_token(config, vocab_size, length, predicted)
    return None if forward is None else 3 * forward


def abstract_params(config: Any, vocab_size: int, max_length: int) -> Any:
    """Shapes and dtypes of the parameters of a model config, without allocating any."""
    module = config.build(vocab_size, max_length)
    ids = jnp.zeros((1, min(max_length, 8)), jnp.int32)

    def init(key: jax.Array):
        return module.init(key, ids, ids, ids, hyper=traced(config))["params"]

    return jax.eval_shape(init, jax.random.key(0))


def active_parameters(config: Any, params: Any) -> int:
    """Number of parameters that one token meets: of a mixture of experts, those that it visits."""
    experts = getattr(config, "feedforward", None)
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        size = math.prod(leaf.shape)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(experts, ExpertsConfig) and re.search(r"(^|/)experts/(in|gate|out)/", name):
            size = size * experts.experts_per_token // experts.num_experts
        total += size
    return total


def parameter_count(config: Any, vocab_size: int, max_length: int) -> int:
    """Number of parameters of a model config; tied embeddings count once."""
    params = abstract_params(config, vocab_size, max_length)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
