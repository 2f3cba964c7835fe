"""`ablax.testing` passes what obeys the laws, and says which one is broken by what does not."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from ablax.config import RequestError, knob
from ablax.models.attention import DotProductAttention, attention_mask, dot_product_attention
from ablax.models.layers import dropout
from ablax.models.lstm import LstmConfig
from ablax.models.transformer import DecoderConfig, EncoderConfig
from ablax.testing import check_attention, check_model

TINY = {"num_layers": 1, "width": 8, "num_heads": 2}


@dataclasses.dataclass(frozen=True)
class Mean:
    """A model as small as they get: each position sees the mean of the embeddings of its segment so far."""

    CAUSAL: ClassVar[bool] = True

    bug: str = knob("", "what is wrong with it")
    rate: float = knob(0.0, "dropout rate", traced=True)
    scale: float = knob(1.0, "of initial weights", traced=True)

    def __post_init__(self):
        if self.bug == "refuses nan" and not self.rate >= 0:
            raise RequestError(f"rate={self.rate} must be 0 or more")

    def build(self, vocab_size: int, max_length: int):
        return MeanModel(self, vocab_size)


class MeanModel(nn.Module):
    config: Mean
    vocab_size: int

    def init_cache(self, batch_size: int, length: int):
        slots = jnp.zeros((batch_size, length), jnp.int32)
        return jnp.zeros((), jnp.int32), jnp.zeros((batch_size, length, 8)), slots, slots

    @nn.compact
    def __call__(self, tokens, positions, segment_ids, *, hyper, carry: Any = (), train=False):
        config, bug = self.config, self.config.bug
        scale = float(hyper["scale"]) if bug == "concrete" else hyper["scale"]
        kind = jnp.bfloat16 if bug == "bfloat16 parameter" else jnp.float32
        start = nn.initializers.normal(scale)
        table = self.param("table", start, (self.vocab_size, 8), kind)
        if bug == "acausal shift":
            tokens = jnp.roll(tokens, -1, axis=1)
        x = table[jnp.zeros_like(tokens) if bug == "blind" else tokens]
        points = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        points = points if bug == "slots for positions" and not carry else positions
        x = x + jnp.sin(points * 1.0)[..., None]
        keys, key_points, key_segments = x, positions, segment_ids
        if carry:
            index = carry[0] + (bug == "cache off by one")
            new = (x, positions, segment_ids)
            at = [(0, index, 0), (0, index), (0, index)]
            keys, key_points, key_segments = (
                jax.lax.dynamic_update_slice(old, part, place)
                for old, part, place in zip(carry[1:], new, at, strict=True)
            )
            grown = tokens.shape[1] if bug != "carry of another form" else 1.5
            carry = carry[0] + grown, keys, key_points, key_segments
        segments = jnp.minimum(segment_ids, 1), jnp.minimum(key_segments, 1)
        leaks = bug == "leak between segments"
        mask = attention_mask(
            positions,
            key_points,
            *(segments if leaks else (segment_ids, key_segments)),
            causal=True,
        )[:, 0]
        count = mask.sum(-1, keepdims=True)
        seen = jnp.einsum("BTS,BSD->BTD", mask * 1.0, keys)
        seen = seen / (count if bug == "padding divides" else jnp.maximum(count, 1))
        if bug == "root at zero":
            seen = seen * jnp.where(count > 0, jnp.sqrt(jnp.abs(seen).sum(-1, keepdims=True)), 0)
        if bug == "neighbours":
            seen = seen + seen.mean(axis=0, keepdims=True)
        rate = config.rate if bug == "constant" else hyper["rate"]
        if train and (config.rate > 0 if bug == "asleep" else config.rate != 0):
            seen = dropout(seen, rate, self.make_rng("dropout"))
        logits = jnp.einsum("BTD,VD->BTV", jnp.tanh(seen) + seen, table)
        if bug == "bfloat16 logits":
            logits = logits.astype(jnp.bfloat16)
        return logits if bug == "no carry" else (logits, carry)


BUGS = {
    "acausal shift": "law of causality: the token at 1 changes the logits at 0",
    "leak between segments": "law of segments: the token at 0 changes logits of another segment",
    "slots for positions": "law of packing: the 3 tokens at 3",
    "neighbours": "law of rows: another row's tokens",
    "blind": "law of rows: other tokens give the same logits",
    "cache off by one": "law of cached decoding: the token at 7 has other logits",
    "carry of another form": "law of cached decoding: init_cache gives",
    "constant": "law of traced knobs: rate is a constant of the program",
    "asleep": "law of traced knobs: rate changes neither initialisation nor training",
    "concrete": "law of traced knobs: a value of `hyper` is needed in Python",
    "refuses nan": "law of traced knobs: with nan",
    "padding divides": "law of padding: a row of padding",
    "root at zero": "law of padding: beside a row of padding the gradient of table is not finite",
    "bfloat16 logits": "law of float32: logits are bfloat16",
    "bfloat16 parameter": "law of float32: the parameter table is bfloat16",
    "no carry": "law of shapes: its module returns",
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_broken_model_is_told_which_law_it_breaks(bug):
    """Each entry of `BUGS` is a bug of one line; catches: a law that looks at nothing."""
    with pytest.raises(AssertionError) as failure:
        check_model(Mean(bug=bug))
    assert BUGS[bug] in str(failure.value)
    assert str(failure.value).startswith("Mean breaks")


@pytest.mark.parametrize(
    "config",
    [Mean, DecoderConfig(**TINY), EncoderConfig(**TINY), LstmConfig(num_layers=2, width=8)],
    ids=["own", "decoder", "encoder", "lstm"],
)
def test_sound_models_pass(config):
    """Catches: a law that is stricter than the models that Ablax ships."""
    check_model(config)


def test_what_is_no_model_is_refused():
    with pytest.raises(RequestError, match="CAUSAL: ClassVar"):
        check_model(DotProductAttention)
    with pytest.raises(RequestError, match="decorate its class"):
        check_model(object)
    with pytest.raises(RequestError, match="length=4"):
        check_model(Mean, length=4)


@dataclasses.dataclass(frozen=True)
class Core:
    """Dot-product attention with something wrong."""

    bug: str = knob("", "what is wrong with it")

    def build(self):
        def attend(query, key, value, *, mask, bias=None, dropout=None):
            if self.bug == "mask upside down":
                mask = ~mask
            if self.bug == "hidden keys":
                mask = mask.at[..., 0].set(True)
            if self.bug == "bias":
                bias = None
            if self.bug == "dropout":
                dropout = None
            if dropout is not None and self.bug == "refuses":
                raise RequestError("no probabilities")
            out = dot_product_attention(query, key, value, mask=mask, bias=bias, dropout=dropout)
            if self.bug == "slots":
                out = out / mask.shape[-1]
            if self.bug == "padding":
                out = out / jnp.any(mask, axis=(1, 3))[:, :, None, None]
            if self.bug == "gradient":
                out = out + query * (1 - jnp.any(mask, axis=(1, 3)))[:, :, None, None]
            return out.astype(jnp.float32) if self.bug == "dtype" else out

        return attend


CORES = {
    "mask upside down": "law of masks",
    "hidden keys": "law of masks: the key at 0 changes the output at 2 of row 1",
    "slots": "law of cached decoding",
    "padding": "law of padding: a query that may attend to nothing gives nan",
    "gradient": "law of padding: a query that may attend to nothing passes a gradient",
    "bias": "law of bias",
    "dropout": "law of dropout: the hook was given nothing",
    "dtype": "law of shapes: of bfloat16 it makes float32",
}


@pytest.mark.parametrize("bug", CORES)
def test_a_broken_core_is_told_which_law_it_breaks(bug):
    with pytest.raises(AssertionError) as failure:
        check_attention(Core(bug))
    assert CORES[bug] in str(failure.value)


def test_sound_cores_pass():
    check_attention(DotProductAttention)
    check_attention(Core("refuses"))


@dataclasses.dataclass(frozen=True)
class Traced(Core):
    scale: float = knob(1.0, "not a constant", traced=True)


def test_a_traced_knob_of_a_core_is_refused():
    with pytest.raises(RequestError, match=r"Traced\.scale is marked traced"):
        check_attention(Traced)
