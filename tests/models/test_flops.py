"""Published parameter counts without allocating, and analytic FLOPs against XLA's own count."""

import jax
import jax.numpy as jnp
import pytest

from ablax.config import traced
from ablax.costs import product_flops
from ablax.models.feedforward import ExpertsConfig
from ablax.models.flops import (
    abstract_params,
    active_parameters,
    forward_flops_per_token,
    parameter_count,
    training_flops_per_token,
)
from ablax.models.lstm import LstmConfig
from ablax.models.positions import RotaryPositions
from ablax.models.transformer import DecoderConfig, EncoderConfig


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("small", 124_439_808),
        ("medium", 354_823_168),
        ("large", 774_030_080),
        ("xl", 1_557_611_200),
    ],
)
def test_gpt2_parameters(preset, parameters):
    """Catches: a missing bias, position table or final norm. Values: the published checkpoints."""
    config = DecoderConfig(**DecoderConfig.PRESETS[preset])
    assert parameter_count(config, 50257, 1024) == parameters


@pytest.mark.parametrize(("preset", "billions"), [("6.7b", 6.7), ("13b", 13.0), ("175b", 175.0)])
def test_gpt3_parameters(preset, billions):
    config = DecoderConfig(**DecoderConfig.PRESETS[preset])
    assert parameter_count(config, 50257, 2048) / 1e9 == pytest.approx(billions, rel=0.015)


def test_mixtral_parameters():
    """Catches: experts that are not counted, or all counted as active. Values: the published checkpoint; table 1."""
    config = DecoderConfig(**DecoderConfig.PRESETS["8x7b"])
    params = abstract_params(config, 32000, 64)
    assert parameter_count(config, 32000, 64) == 46_702_792_704
    assert active_parameters(config, params) / 1e9 == pytest.approx(12.9, abs=0.05)


@pytest.mark.parametrize(("preset", "parameters"), [("base", 109_514_298), ("large", 335_174_458)])
def test_bert_parameters(preset, parameters):
    """Values: BertForMaskedLM of transformers for bert-base-uncased and bert-large-uncased."""
    config = EncoderConfig(**EncoderConfig.PRESETS[preset], num_token_types=2)
    assert parameter_count(config, 30522, 512) == parameters


def test_tiny_presets_are_small():
    for cls in (DecoderConfig, EncoderConfig):
        assert parameter_count(cls(**cls.PRESETS["tiny"]), 256, 128) < 1e6
    leaf = jax.tree.leaves(
        abstract_params(DecoderConfig(**DecoderConfig.PRESETS["175b"]), 50257, 8)
    )
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in leaf)


@pytest.mark.parametrize(
    "config",
    [
        DecoderConfig(
            num_layers=2, width=256, num_heads=2, activation="relu", norm="rmsnorm", bias=False
        ),
        EncoderConfig(
            num_layers=1,
            width=256,
            num_heads=4,
            num_kv_heads=2,
            head_width=128,
            activation="swiglu",
            positions=RotaryPositions(),
        ),
        # All steps in one turn: XLA counts the body of a loop once.
        LstmConfig(num_layers=2, width=192, hidden_width=256, unroll=4),
    ],
    ids=["decoder", "encoder", "lstm"],
)
def test_flops_equal_xlas(config):
    """Catches: a forgotten gate, grouped heads counted in full, attention counted once, an LSTM without its head.

    2 % are what is not a matrix product: norms, activations, softmax, gates.
    """
    batch, length, vocab = 1, 4 if isinstance(config, LstmConfig) else 64, 512
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    module = config.build(vocab, length)
    params = abstract_params(config, vocab, length)

    def forward(params, ids):
        return module.apply({"params": params}, ids, ids, ids, hyper=traced(config))[0]

    compiled = jax.jit(forward).lower(params, ids).compile()
    counted = compiled.cost_analysis()["flops"] / (batch * length)
    assert forward_flops_per_token(config, vocab, length) == pytest.approx(counted, rel=0.02)


def test_flops_of_experts_are_those_of_the_visited():
    """Catches: all experts counted, or one. With a capacity of the even share no product is computed in vain."""
    experts = ExpertsConfig(num_experts=4, capacity_factor=1.0)
    config = DecoderConfig(
        num_layers=1, width=256, num_heads=2, activation="relu", feedforward=experts
    )
    ids, module = jax.ShapeDtypeStruct((1, 64), jnp.int32), config.build(512, 64)

    def forward(params, ids):
        hyper = traced(config)
        return module.apply({"params": params}, ids, ids, ids, hyper=hyper, train=True)[0]

    params = abstract_params(config, 512, 64)
    counted = product_flops(jax.make_jaxpr(forward)(params, ids).jaxpr) / 64
    assert forward_flops_per_token(config, 512, 64) == counted


def test_gpt2_training_costs_855_million_operations_a_token():
    assert training_flops_per_token(DecoderConfig(), 50257, 1024) == pytest.approx(855e6, rel=0.002)
