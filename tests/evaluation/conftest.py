"""Tiny models with weights large enough that their predictions differ, and documents of many lengths."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import static, traced
from ablax.evaluation.pieces import Documents
from ablax.models.lstm import LstmConfig
from ablax.models.transformer import DecoderConfig, EncoderConfig

VOCAB = 17
BOS, EOS, MASK = 1, 2, 3


def build(config):
    module = static(config).build(VOCAB, 64)
    hyper = jax.tree.map(jnp.float32, traced(config))
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = functools.partial(module.init, hyper=hyper)
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, tokens, tokens + 1)["params"]
    rng = np.random.default_rng(0)  # no initialiser to compile, and predictions that differ

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        values = rng.normal(0, 0.1 if "bias" in name else 0.5, leaf.shape)
        return jnp.asarray(np.ones(leaf.shape) if "scale" in name else values, jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)

    @jax.jit
    def apply(tokens, length):
        """Log-probabilities [T V] of one sequence padded at its end."""
        places = jnp.arange(len(tokens), dtype=jnp.int32)[None]
        segments = (places < length).astype(jnp.int32)
        logits, _ = module.apply({"params": params}, tokens[None], places, segments, hyper=hyper)
        return jax.nn.log_softmax(logits[0])

    def log_probs(tokens):
        """Log-probabilities float64 [T V] of one sequence, alone in its row."""
        padded = np.zeros(40, np.int32)
        padded[: len(tokens)] = tokens
        return np.asarray(apply(padded, len(tokens)), float)[: len(tokens)]

    return types.SimpleNamespace(module=module, params=params, hyper=hyper, log_probs=log_probs)


@pytest.fixture(scope="session")
def decoder():
    return build(DecoderConfig(num_layers=2, width=16, num_heads=2, unroll=1))


@pytest.fixture(scope="session")
def lstm():
    return build(LstmConfig(num_layers=1, width=16, init_scale=0.2))


@pytest.fixture(scope="session")
def encoder():
    return build(EncoderConfig(num_layers=1, width=16, num_heads=2, norm_placement="pre"))


@pytest.fixture(scope="session")
def documents():
    """Lengths around the context of 8: empty, one token, just a window, several windows."""
    rng = np.random.default_rng(0)
    lengths = [5, 0, 1, 7, 6, 8, 21, 3, 15, 2, 14, 16]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(4, VOCAB, offsets[-1]).astype(np.uint16)
    return Documents(tokens, offsets, np.array(lengths) * 2, lossless=True)
