"""Families of masked models."""

from ablax.interop.families import Family
from ablax.interop.fields import field
from ablax.interop.rotary_fields import Learned
from ablax.interop.rules import Rule, Weights, linear, norm, table
from ablax.models.transformer import EncoderConfig

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu"}
PARTS = (
    field("num_hidden_layers", "num_layers"),
    field("hidden_size", "width"),
    field("num_attention_heads", "num_heads"),
    field("intermediate_size", "feedforward_width"),
    field("hidden_act", "activation", default="gelu", values=ACTIVATIONS),
    field("layer_norm_eps", "norm_epsilon", default=1e-12),
    field("type_vocab_size", "num_token_types", default=2),
    field("tie_word_embeddings", "tied_embeddings", default=True),
    field("attention_probs_dropout_prob", "attention_dropout", default=0.1),
    field(
        "hidden_dropout_prob", "embedding_dropout", "residual_dropout", "mlp_dropout", default=0.1
    ),
)
KNOBS = {"norm": "layernorm", "bias": True, "norm_placement": "post", "embedding_norm": True}
NO_HEAD = {"head_transform": False, "head_bias": False}


def body(prefix: str) -> tuple[Rule, ...]:
    """The tensors of a model without its head."""
    embeddings, layer = f"{prefix}embeddings.", f"{prefix}encoder.layer.{{}}."
    return (
        *table("tokens", f"{embeddings}word_embeddings"),
        *table("positions", f"{embeddings}position_embeddings"),
        *table("token_types", f"{embeddings}token_type_embeddings"),
        *norm("embedding_norm", f"{embeddings}LayerNorm"),
        *linear("blocks/attention/query", f"{layer}attention.self.query"),
        *linear("blocks/attention/key", f"{layer}attention.self.key"),
        *linear("blocks/attention/value", f"{layer}attention.self.value"),
        *linear("blocks/attention/out", f"{layer}attention.output.dense"),
        *norm("blocks/attention_norm", f"{layer}attention.output.LayerNorm"),
        *linear("blocks/mlp/in", f"{layer}intermediate.dense"),
        *linear("blocks/mlp/out", f"{layer}output.dense"),
        *norm("blocks/mlp_norm", f"{layer}output.LayerNorm"),
    )


def dropped(prefix: str) -> dict[str, str]:
    """What the project's encoder has no use for."""
    return {
        rf"{prefix}pooler\.dense\.(weight|bias)": "the pooler, which no masked model reads",
        rf"{prefix}embeddings\.position_ids": "numbers of positions, which are computed",
    }


BERT = Family(
    name="bert",
    model=EncoderConfig,
    knobs=KNOBS,
    parts=(*PARTS, Learned("max_position_embeddings")),
    weights=Weights(
        prefix="bert.",
        rules=(
            *body("bert."),
            *linear("head/transform", "cls.predictions.transform.dense"),
            *norm("head/norm", "cls.predictions.transform.LayerNorm"),
            Rule("cls.predictions.bias", ("head/bias",)),
            *linear("head", "cls.predictions.decoder")[:1],
        ),
        copies={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        dropped={
            **dropped("bert."),
            r"cls\.seq_relationship\.(weight|bias)": "the head of next-sentence prediction",
        },
        spellings=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    ),
    architectures={"BertForMaskedLM": {}, "BertForPreTraining": {}, "BertModel": NO_HEAD},
)

ROBERTA = Family(
    name="roberta",
    model=EncoderConfig,
    knobs=KNOBS,
    parts=(*PARTS, Learned("max_position_embeddings", padded=True)),
    weights=Weights(
        prefix="roberta.",
        rules=(
            *body("roberta."),
            *linear("head/transform", "lm_head.dense"),
            *norm("head/norm", "lm_head.layer_norm"),
            Rule("lm_head.bias", ("head/bias",)),
            *linear("head", "lm_head.decoder")[:1],
        ),
        copies={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        dropped=dropped("roberta."),
    ),
    architectures={"RobertaForMaskedLM": {}, "RobertaModel": NO_HEAD},
)
