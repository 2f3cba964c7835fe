"""Tiny models of each family, for several folders; weights are drawn in NumPy: no initialiser to compile."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import static, traced
from ablax.models.lstm import LstmConfig
from ablax.models.transformer import DecoderConfig, EncoderConfig

VOCAB, MAX_LENGTH = 17, 64


def start(module, hyper):
    """The module with weights large enough that its predictions differ.

    `log_probs(tokens)` gives the log-probabilities float64 [T V] of one sequence of at most 40 tokens, alone in its
    row.
    """
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = functools.partial(module.init, hyper=hyper)
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, tokens, tokens + 1)["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        values = rng.normal(0, 0.1 if "bias" in name else 1.0, leaf.shape)
        return jnp.asarray(np.ones(leaf.shape) if "scale" in name else values, jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)

    @jax.jit
    def apply(tokens, length):
        places = jnp.arange(len(tokens), dtype=jnp.int32)[None]
        segments = (places < length).astype(jnp.int32)
        logits, _ = module.apply({"params": params}, tokens[None], places, segments, hyper=hyper)
        return jax.nn.log_softmax(logits[0])

    def log_probs(tokens):
        padded = np.zeros(40, np.int32)
        padded[: len(tokens)] = tokens
        return np.asarray(apply(padded, len(tokens)), float)[: len(tokens)]

    return types.SimpleNamespace(module=module, params=params, hyper=hyper, log_probs=log_probs)


def build(config):
    module = static(config).build(VOCAB, MAX_LENGTH)
    return start(module, jax.tree.map(jnp.float32, traced(config)))


@pytest.fixture(scope="session")
def decoder():
    return build(DecoderConfig(num_layers=2, width=16, num_heads=2, unroll=1))


@pytest.fixture(scope="session")
def lstm():
    return build(LstmConfig(num_layers=1, width=16, init_scale=0.2))


@pytest.fixture(scope="session")
def encoder():
    return build(EncoderConfig(num_layers=1, width=16, num_heads=2, norm_placement="pre"))
