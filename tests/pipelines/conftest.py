"""Models that compile in no time, as `ablax.load` gives them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.data.exact_tokenizers import ByteConfig, CharacterConfig
from ablax.data.tokenizers import build_tokenizer
from ablax.experiment import base, resolve
from ablax.model import Model

LIMIT = 48


class Means(nn.Module):
    """What was read so far on average, and the last token; both ways where it is not causal."""

    vocab: int
    causal: bool = True
    position_limit: int | None = LIMIT

    def setup(self):
        draw = nn.initializers.normal(1.0)
        self.table = self.param("in", draw, (self.vocab, 16))
        self.out = self.param("out", draw, (16, self.vocab))

    def features(self, tokens, positions, segment_ids, *, hyper, carry=(), train=False):
        weights = (segment_ids > 0).astype(jnp.float32)[..., None]
        read = (self.table[tokens] + jnp.sin(positions)[..., None]) * weights
        total, count = carry if carry else (jnp.zeros((1, 1)), jnp.zeros((1, 1)))
        if self.causal:
            total = total[:, None] + read.cumsum(axis=1)
            count = count[:, None] + weights.cumsum(axis=1)
        else:
            total = (
                read.sum(axis=1, keepdims=True) + jnp.pad(read, ((0, 0), (1, 0), (0, 0)))[:, :-1]
            )
            count = weights.sum(axis=1, keepdims=True)
        states = read + total / jnp.maximum(count, 1)
        return states, (total[:, -1], count[:, -1]) if carry else ()

    def __call__(self, *inputs, **options):
        states, carry = self.features(*inputs, **options)
        return states @ self.out, carry

    def init_cache(self, batch_size, length):
        del length
        return jnp.zeros((batch_size, 16)), jnp.zeros((batch_size, 1))


def made(tokenizer, causal: bool, seed: int = 0) -> Model:
    config = resolve(
        base(
            objective="causal" if causal else "masked",
            model="decoder" if causal else "encoder",
            source="text:none",
        )
    )
    rng = np.random.default_rng(seed)
    size = tokenizer.vocab_size
    params = {
        "in": jnp.asarray(rng.normal(size=(size, 16)), jnp.float32),
        "out": jnp.asarray(rng.normal(size=(16, size)), jnp.float32),
    }
    params["out"] = params["out"].at[:, : len(tokenizer.special_texts)].set(0)
    return Model(config, Means(size, causal), jax.device_put(params), tokenizer, 0, {})


@pytest.fixture(scope="session")
def causal() -> Model:
    """Over letters, whose <bos> stands before each text."""
    specials = ("pad", "bos", "eos")
    text = "abcdefghijklmnopqrstuvwxyz .,:\nUsrAit"
    return made(build_tokenizer(CharacterConfig(), [text], specials), True)


@pytest.fixture(scope="session")
def bytewise() -> Model:
    """Over bytes: it says many that are no characters, and parts of some that are."""
    tokenizer = build_tokenizer(ByteConfig(), [], ("bos", "eos"))
    model = made(tokenizer, True, seed=3)
    # Bytes of longer characters are likelier than others.
    high = np.arange(tokenizer.vocab_size) >= tokenizer.vocab_size - 128
    model.params["out"] = model.params["out"] * np.where(high, 1.0, 0.1)[None]
    return model


@pytest.fixture(scope="session")
def masked() -> Model:
    """Over letters, with masks."""
    specials = ("pad", "bos", "eos", "mask")
    return made(build_tokenizer(CharacterConfig(), ["abcdefghij "], specials), False)
