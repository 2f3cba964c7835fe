"""The smallest causal model, and a tokenizer of letters."""

import flax.linen as nn
import jax.numpy as jnp
import pytest

from ablax.data.exact_tokenizers import CharacterConfig
from ablax.data.tokenizers import build_tokenizer
from tiny_models import VOCAB, decoder, encoder, lstm, start

__all__ = ["decoder", "encoder", "letters", "lstm", "mean", "unmarked_letters"]


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


@pytest.fixture(scope="session")
def mean():
    model = start(RunningMean(), {})
    model.params["out"] = model.params["out"].at[:, :4].set(0)  # specials are rarely said
    return model


@pytest.fixture(scope="session")
def letters():
    """Ids: 0 <pad>, 1 <bos>, 2 <eos>, 3 <mask>, 4 space, 5 a, ... 16 l."""
    specials = ("pad", "bos", "eos", "mask")
    return build_tokenizer(CharacterConfig(), ["abcdefghijkl "], specials)


@pytest.fixture(scope="session")
def unmarked_letters():
    return build_tokenizer(CharacterConfig(), ["abcdefghijklmno "])
