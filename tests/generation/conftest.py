"""A tiny decoder with weights large enough that its choices differ, and a tokenizer of letters."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import static, traced
from ablax.models.transformer import DecoderConfig, EncoderConfig

VOCAB = 17


def build(config, vocab_size=VOCAB, max_length=64):
    module = static(config).build(vocab_size, max_length)
    hyper = jax.tree.map(jnp.float32, traced(config))
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = jax.jit(module.init)  # one program; a hundred small ones take seconds
    params = init(jax.random.key(0), tokens, tokens, tokens + 1, hyper=hyper)["params"]
    return types.SimpleNamespace(
        module=module,
        params=jax.tree.map(lambda leaf: leaf * 8, params),
        hyper=hyper,
        vocab_size=vocab_size,
        max_length=max_length,
    )


@pytest.fixture(scope="session")
def decoder():
    return build(DecoderConfig(num_layers=2, width=16, num_heads=2, unroll=1))


@pytest.fixture(scope="session")
def encoder():
    return build(EncoderConfig(num_layers=1, width=16, num_heads=2, norm_placement="pre"))


class Letters:
    """One token per letter of `abcdefghijkl` or space; `specials` come first."""

    alphabet = "abcdefghijkl "
    vocab_size = VOCAB
    lossless = True

    def __init__(self, bos=1, eos=2, mask=3):
        self.specials = types.SimpleNamespace(pad=0, bos=bos, eos=eos, mask=mask)

    def encode(self, text):
        return np.array([4 + self.alphabet.index(letter) for letter in text], np.int32)

    def decode(self, ids):
        return "".join(self.alphabet[int(i) - 4] if int(i) >= 4 else "?" for i in ids)


@pytest.fixture(scope="session")
def letters():
    return Letters()


@pytest.fixture(scope="session")
def unmarked_letters():
    return Letters(bos=None, eos=None)
