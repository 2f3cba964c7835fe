"""Families of causal models."""

from ablax.interop.families import Family
from ablax.interop.fields import field
from ablax.interop.layouts import HEADS, SAME, THIRDS
from ablax.interop.rotary_fields import LayerWindows, Learned, Rotary, Window
from ablax.interop.rules import Weights, fused, linear, norm, table
from ablax.models.transformer import DecoderConfig

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
GATES = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
}
MASKS = {
    r".*\.attn\.(masked_)?bias": "a mask, which is computed",
    r".*\.attention\.(masked_)?bias": "a mask, which is computed",
    r".*rotary_emb\.inv_freq": "frequencies, which are computed",
}
"""What older versions of transformers saved beside parameters."""

GPT2 = Family(
    name="gpt2",
    model=DecoderConfig,
    knobs={"norm": "layernorm", "bias": True},
    parts=(
        field("n_layer", "num_layers"),
        field("n_embd", "width"),
        field("n_head", "num_heads"),
        field("n_inner", "feedforward_width", default=None),
        field("activation_function", "activation", default="gelu_new", values=ACTIVATIONS),
        field("layer_norm_epsilon", "norm_epsilon", default=1e-5),
        field("tie_word_embeddings", "tied_embeddings", default=True),
        field("embd_pdrop", "embedding_dropout", default=0.1),
        field("attn_pdrop", "attention_dropout", default=0.1),
        field("resid_pdrop", "residual_dropout", "mlp_dropout", default=0.1),
        Learned("n_positions"),
    ),
    fixed={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
    weights=Weights(
        prefix="transformer.",
        rules=(
            *table("tokens", "transformer.wte"),
            *table("positions", "transformer.wpe"),
            *norm("blocks/attention_norm", "transformer.h.{}.ln_1"),
            *fused("transformer.h.{}.attn.c_attn", THIRDS),
            *linear("blocks/attention/out", "transformer.h.{}.attn.c_proj", SAME),
            *norm("blocks/mlp_norm", "transformer.h.{}.ln_2"),
            *linear("blocks/mlp/in", "transformer.h.{}.mlp.c_fc", SAME),
            *linear("blocks/mlp/out", "transformer.h.{}.mlp.c_proj", SAME),
            *norm("final_norm", "transformer.ln_f"),
            *linear("head", "lm_head"),
        ),
        copies={"lm_head.weight": "transformer.wte.weight"},
        dropped=MASKS,
    ),
    architectures={"GPT2LMHeadModel": {}, "GPT2Model": {}},
)

NEOX = Family(
    name="gpt_neox",
    model=DecoderConfig,
    knobs={"norm": "layernorm", "bias": True},
    parts=(
        field("num_hidden_layers", "num_layers"),
        field("hidden_size", "width"),
        field("num_attention_heads", "num_heads"),
        field("intermediate_size", "feedforward_width"),
        field("hidden_act", "activation", default="gelu", values=ACTIVATIONS),
        field("layer_norm_eps", "norm_epsilon", default=1e-5),
        field("use_parallel_residual", "parallel_residual", default=True),
        field("attention_bias", "qkv_bias", "attention_out_bias", default=True),
        field("tie_word_embeddings", "tied_embeddings", default=False),
        field("attention_dropout", "attention_dropout", default=0.0),
        field(
            "hidden_dropout", "embedding_dropout", "residual_dropout", "mlp_dropout", default=0.0
        ),
        Rotary(base=("rotary_emb_base", 10000.0), fraction=("rotary_pct", 0.25)),
    ),
    weights=Weights(
        prefix="gpt_neox.",
        rules=(
            *table("tokens", "gpt_neox.embed_in"),
            *norm("blocks/attention_norm", "gpt_neox.layers.{}.input_layernorm"),
            *fused("gpt_neox.layers.{}.attention.query_key_value", HEADS),
            *linear("blocks/attention/out", "gpt_neox.layers.{}.attention.dense"),
            *norm("blocks/mlp_norm", "gpt_neox.layers.{}.post_attention_layernorm"),
            *linear("blocks/mlp/in", "gpt_neox.layers.{}.mlp.dense_h_to_4h"),
            *linear("blocks/mlp/out", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
            *norm("final_norm", "gpt_neox.final_layer_norm"),
            *linear("head", "embed_out"),
        ),
        copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
        dropped=MASKS,
    ),
    architectures={"GPTNeoXForCausalLM": {}},
)

# What Llama, Mistral and Qwen share.
LLAMA_KNOBS = {"norm": "rmsnorm", "bias": False}
LLAMA_PARTS = (
    field("num_hidden_layers", "num_layers"),
    field("hidden_size", "width"),
    field("num_attention_heads", "num_heads"),
    field("num_key_value_heads", "num_kv_heads", default=None),
    field("intermediate_size", "feedforward_width"),
    field("hidden_act", "activation", default="silu", values=GATES),
    field("rms_norm_eps", "norm_epsilon", default=1e-6),
    field("tie_word_embeddings", "tied_embeddings", default=False),
    field("attention_dropout", "attention_dropout", default=0.0),
    Rotary(),
)
LLAMA_WEIGHTS = Weights(
    prefix="model.",
    rules=(
        *table("tokens", "model.embed_tokens"),
        *norm("blocks/attention_norm", "model.layers.{}.input_layernorm"),
        *linear("blocks/attention/query", "model.layers.{}.self_attn.q_proj"),
        *linear("blocks/attention/key", "model.layers.{}.self_attn.k_proj"),
        *linear("blocks/attention/value", "model.layers.{}.self_attn.v_proj"),
        *norm("blocks/attention/query_norm", "model.layers.{}.self_attn.q_norm"),
        *norm("blocks/attention/key_norm", "model.layers.{}.self_attn.k_norm"),
        *linear("blocks/attention/out", "model.layers.{}.self_attn.o_proj"),
        *norm("blocks/mlp_norm", "model.layers.{}.post_attention_layernorm"),
        *linear("blocks/mlp/gate", "model.layers.{}.mlp.gate_proj"),
        *linear("blocks/mlp/in", "model.layers.{}.mlp.up_proj"),
        *linear("blocks/mlp/out", "model.layers.{}.mlp.down_proj"),
        *norm("final_norm", "model.norm"),
        *linear("head", "lm_head"),
    ),
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    dropped=MASKS,
)

LLAMA = Family(
    name="llama",
    model=DecoderConfig,
    knobs=LLAMA_KNOBS,
    parts=(
        *LLAMA_PARTS,
        field("head_dim", "head_width", default=None),
        field("attention_bias", "qkv_bias", "attention_out_bias", default=False),
        field("mlp_bias", "bias", default=False),
    ),
    weights=LLAMA_WEIGHTS,
    architectures={"LlamaForCausalLM": {}},
)

MISTRAL = Family(
    name="mistral",
    model=DecoderConfig,
    knobs=LLAMA_KNOBS,
    parts=(*LLAMA_PARTS, field("head_dim", "head_width", default=None), Window(4096)),
    weights=LLAMA_WEIGHTS,
    architectures={"MistralForCausalLM": {}},
)

QWEN2 = Family(
    name="qwen2",
    model=DecoderConfig,
    knobs={**LLAMA_KNOBS, "qkv_bias": True},
    parts=(*LLAMA_PARTS, LayerWindows()),
    weights=LLAMA_WEIGHTS,
    architectures={"Qwen2ForCausalLM": {}},
)

QWEN3 = Family(
    name="qwen3",
    model=DecoderConfig,
    knobs={**LLAMA_KNOBS, "query_key_norm": True},
    parts=(
        *LLAMA_PARTS,
        field("head_dim", "head_width", default=128),
        field("attention_bias", "qkv_bias", "attention_out_bias", default=False),
        LayerWindows(),
    ),
    weights=LLAMA_WEIGHTS,
    architectures={"Qwen3ForCausalLM": {}},
)
