"""Tiny models, and a tokenizer of letters."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import static, traced
from ablax.data.exact_tokenizers import CharacterConfig
from ablax.data.tokenizers import build_tokenizer
from ablax.models.lstm import LstmConfig
from ablax.models.transformer import DecoderConfig, EncoderConfig

VOCAB = 17
MAX_LENGTH = 64


class RunningMean(nn.Module):
    """The smallest causal model: the mean of what was read, and the last token. Compiles in no time."""

    @nn.compact
    def __call__(self, tokens, positions, segment_ids, *, hyper, carry=(), train=False):
        draw = nn.initializers.normal(1.0)
        table, out = self.param("in", draw, (VOCAB, 16)), self.param("out", draw, (16, VOCAB))
        weights = (segment_ids > 0).astype(jnp.float32)[..., None]
        read = (table[tokens] + jnp.sin(positions)[..., None]) * weights
        total, count = carry if carry else (jnp.zeros((1, 1)), jnp.zeros((1, 1)))
        total = total[:, None] + read.cumsum(axis=1)
        count = count[:, None] + weights.cumsum(axis=1)
        logits = (read + total / jnp.maximum(count, 1)) @ out
        return logits, (total[:, -1], count[:, -1]) if carry else ()

    def init_cache(self, batch_size, length):
        return jnp.zeros((batch_size, 16)), jnp.zeros((batch_size, 1))


def start(module, hyper):
    """Weights large enough that choices differ, without compiling an initialiser."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = functools.partial(module.init, hyper=hyper)
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, tokens, tokens + 1)["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        values = rng.normal(0, 0.1 if "bias" in name else 1.0, leaf.shape)
        return jnp.asarray(np.ones(leaf.shape) if "scale" in name else values, jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return types.SimpleNamespace(module=module, params=params, hyper=hyper)


def build(config):
    module = static(config).build(VOCAB, MAX_LENGTH)
    return start(module, jax.tree.map(jnp.float32, traced(config)))


@pytest.fixture(scope="session")
def mean():
    model = start(RunningMean(), {})
    model.params["out"] = model.params["out"].at[:, :4].set(0)  # specials are rarely said
    return model


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
def letters():
    """Ids: 0 <pad>, 1 <bos>, 2 <eos>, 3 <mask>, 4 space, 5 a, ... 16 l."""
    specials = ("pad", "bos", "eos", "mask")
    return build_tokenizer(CharacterConfig(), ["abcdefghijkl "], specials)


@pytest.fixture(scope="session")
def unmarked_letters():
    return build_tokenizer(CharacterConfig(), ["abcdefghijklmno "])
