"""Logits equal to transformers' GPT-2, Llama and BERT with the same random weights, and scaled rotations to its own."""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import traced
from ablax.models.positions import RotaryPositions
from ablax.models.rotary_scaling import (
    SCALINGS,
    LinearScaling,
    Llama3Scaling,
    NoScaling,
    YarnScaling,
)
from ablax.models.transformer import DecoderConfig, EncoderConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V, T, D, L, N, F = 31, 10, 16, 2, 4, 24
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, V, (2, T)).astype(np.int32)

# float32 logits of at most 2.5 after two layers, sums in another order: 5e-7 seen.
close = functools.partial(np.testing.assert_allclose, atol=5e-6)


def randomised(model: Any) -> dict[str, np.ndarray]:
    """Fills all parameters with noise, so that no bias is zero, and returns them by name."""
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.tensor(RNG.normal(0, 0.3, parameter.shape), dtype=torch.float32))
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def stacked(weights: dict[str, np.ndarray], pattern: str, *, transpose: bool = False) -> np.ndarray:
    """One array [L ...] from a name with {} for the layer; torch's Linear keeps kernels [out, in]."""
    leaves = [weights[pattern.format(layer)] for layer in range(L)]
    return np.stack([leaf.T if transpose else leaf for leaf in leaves])


def stacked_pair(
    weights: dict[str, np.ndarray], block: str, kind: str, name: str, *, transpose: bool = False
) -> dict[str, np.ndarray]:
    """Weight (a kernel or a scale) and bias of one module of all blocks."""
    weight = stacked(weights, f"{block}{name}.weight", transpose=transpose)
    return {kind: weight, "bias": stacked(weights, f"{block}{name}.bias")}


def our_logits(config: Any, params: Any, segments: np.ndarray | None = None) -> np.ndarray:
    module = config.build(V, T)
    positions = jnp.arange(T, dtype=jnp.int32)[None].repeat(2, 0)
    segment_ids = jnp.ones((2, T), jnp.int32) if segments is None else jnp.asarray(segments)
    inputs = (jnp.asarray(TOKENS), positions, segment_ids)
    expected = jax.eval_shape(
        lambda: module.init(jax.random.key(0), *inputs, hyper=traced(config))
    )["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    forward = jax.jit(lambda p: module.apply({"params": p}, *inputs, hyper=traced(config))[0])
    return np.asarray(forward(params))


def test_gpt2():
    """Catches: exact GELU, post-norm, a wrong epsilon, heads interleaved in the projection."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=V,
            n_positions=T,
            n_embd=D,
            n_layer=L,
            n_head=N,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    w = randomised(model)
    block = "transformer.h.{}."
    qkv = np.split(stacked(w, block + "attn.c_attn.weight"), 3, axis=-1)
    qkv_bias = np.split(stacked(w, block + "attn.c_attn.bias"), 3, axis=-1)

    linear = functools.partial(stacked_pair, w, block, "kernel")
    norm = functools.partial(stacked_pair, w, block, "scale")
    attention = {
        name: {"kernel": kernel, "bias": bias}
        for name, kernel, bias in zip(("query", "key", "value"), qkv, qkv_bias)
    }
    params = {
        "tokens": {"embedding": w["transformer.wte.weight"]},
        "positions": {"embedding": w["transformer.wpe.weight"]},
        "blocks": {
            "attention_norm": norm("ln_1"),
            "attention": {**attention, "out": linear("attn.c_proj")},
            "mlp_norm": norm("ln_2"),
            "mlp": {"in": linear("mlp.c_fc"), "out": linear("mlp.c_proj")},
        },
        "final_norm": {
            "scale": w["transformer.ln_f.weight"],
            "bias": w["transformer.ln_f.bias"],
        },
    }
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    ours = our_logits(DecoderConfig(num_layers=L, width=D, num_heads=N), params)
    close(ours, theirs)


def test_llama():
    """Catches: interleaved rotary pairs, heads grouped as n % K, SiLU on the wrong branch."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=V,
            hidden_size=D,
            intermediate_size=F,
            num_hidden_layers=L,
            num_attention_heads=N,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            max_position_embeddings=T,
            tie_word_embeddings=False,
        )
    )
    w = randomised(model)
    block = "model.layers.{}."

    def linear(name: str) -> dict[str, np.ndarray]:
        return {"kernel": stacked(w, f"{block}{name}.weight", transpose=True)}

    params = {
        "tokens": {"embedding": w["model.embed_tokens.weight"]},
        "blocks": {
            "attention_norm": {"scale": stacked(w, block + "input_layernorm.weight")},
            "attention": {
                name: linear(f"self_attn.{short}_proj")
                for name, short in [("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")]
            },
            "mlp_norm": {"scale": stacked(w, block + "post_attention_layernorm.weight")},
            "mlp": {
                name: linear(f"mlp.{theirs}_proj")
                for name, theirs in [("in", "up"), ("gate", "gate"), ("out", "down")]
            },
        },
        "final_norm": {"scale": w["model.norm.weight"]},
        "head": {"kernel": w["lm_head.weight"].T},
    }
    config = DecoderConfig(
        num_layers=L,
        width=D,
        num_heads=N,
        num_kv_heads=2,
        feedforward_width=F,
        activation="swiglu",
        norm="rmsnorm",
        norm_epsilon=1e-6,
        bias=False,
        positions=RotaryPositions(),
        tied_embeddings=False,
    )
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    close(our_logits(config, params), theirs)


def test_bert():
    """With padding. Catches: pre-norm, no embedding norm, tanh GELU, a head without its transform."""
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=V,
            hidden_size=D,
            num_hidden_layers=L,
            num_attention_heads=N,
            intermediate_size=F,
            max_position_embeddings=T,
        )
    )
    w = randomised(model)
    block = "bert.encoder.layer.{}."

    linear = functools.partial(stacked_pair, w, block, "kernel", transpose=True)
    norm = functools.partial(stacked_pair, w, block, "scale")
    head, embeddings = "cls.predictions.transform.", "bert.embeddings."
    params = {
        "tokens": {"embedding": w[embeddings + "word_embeddings.weight"]},
        "positions": {"embedding": w[embeddings + "position_embeddings.weight"]},
        "token_types": {"embedding": w[embeddings + "token_type_embeddings.weight"]},
        "embedding_norm": {
            "scale": w[embeddings + "LayerNorm.weight"],
            "bias": w[embeddings + "LayerNorm.bias"],
        },
        "blocks": {
            "attention": {
                **{n: linear(f"attention.self.{n}") for n in ("query", "key", "value")},
                "out": linear("attention.output.dense"),
            },
            "attention_norm": norm("attention.output.LayerNorm"),
            "mlp": {"in": linear("intermediate.dense"), "out": linear("output.dense")},
            "mlp_norm": norm("output.LayerNorm"),
        },
        "head": {
            "transform": {"kernel": w[head + "dense.weight"].T, "bias": w[head + "dense.bias"]},
            "norm": {"scale": w[head + "LayerNorm.weight"], "bias": w[head + "LayerNorm.bias"]},
            "bias": w["cls.predictions.bias"],
        },
    }
    config = EncoderConfig(
        num_layers=L, width=D, num_heads=N, feedforward_width=F, num_token_types=2
    )
    segments = np.ones_like(TOKENS)
    segments[1, 7:] = 0
    with torch.no_grad():
        theirs = model(
            torch.tensor(TOKENS, dtype=torch.long),
            attention_mask=torch.tensor(segments, dtype=torch.long),
        ).logits.numpy()
    ours = our_logits(config, params, segments)
    close(ours[0], theirs[0])
    close(ours[1, :7], theirs[1, :7])


BASE, WIDTH = 1e4, 32
FREQUENCIES = jnp.asarray(BASE ** (-np.arange(0, WIDTH, 2) / WIDTH), jnp.float32)
# Lengths at which some pairs turn seldom, some often, and some in between.
SCALED = [
    (NoScaling(), {"rope_type": "default"}),
    (LinearScaling(factor=3.0), {"rope_type": "linear", "factor": 3.0}),
    (
        Llama3Scaling(factor=8.0, original_length=512),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    ),
    (
        YarnScaling(factor=4.0, original_length=512),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    ),
    (
        YarnScaling(4.0, 16.0, 2.0, 1.5, 512, truncate=False),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.5,
            "original_max_position_embeddings": 512,
            "truncate": False,
        },
    ),
]


def test_every_scaling_is_compared():
    assert {type(config) for config, _ in SCALED} == set(SCALINGS.values())


@pytest.mark.parametrize(("config", "theirs"), SCALED)
def test_scalings_equal_transformers(config, theirs):
    """Catches: fast and slow pairs exchanged, a ramp over features instead of pairs, no factor on the cosines."""
    functions = importlib.import_module("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    model = transformers.LlamaConfig(
        hidden_size=2 * WIDTH,
        num_attention_heads=2,
        max_position_embeddings=2048,
        rope_parameters={**theirs, "rope_theta": BASE},
    )
    if theirs["rope_type"] == "default":
        expected, size = np.asarray(FREQUENCIES), 1.0
    else:
        expected, size = functions[theirs["rope_type"]](model, "cpu")
    frequencies, factor = config.build(FREQUENCIES, BASE)
    np.testing.assert_allclose(frequencies, np.asarray(expected), rtol=1e-6)  # float32
    assert factor == pytest.approx(size)
    assert (frequencies == FREQUENCIES).all() == (theirs["rope_type"] == "default")
