"""The Transformer's knobs: causal decoder and bidirectional encoder from one configuration."""

import dataclasses
from typing import Any, ClassVar, Literal

from ablax.config import family, knob
from ablax.models.attention import ATTENTION, DENSE
from ablax.models.checks import check
from ablax.models.feedforward import FEEDFORWARD
from ablax.models.layers import GATED, Activation
from ablax.models.network import Transformer
from ablax.models.parametrisation import PARAMETRISATIONS, Growth, Rule, learning_rates
from ablax.models.positions import POSITIONS, Sizes
from ablax.models.presets import DECODERS, ENCODERS


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The knobs of decoder and encoder; defaults are GPT-2's (Radford et al. 2019)."""

    CAUSAL: ClassVar[bool] = True
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    num_layers: int = knob(12, "number of blocks L")
    width: int = knob(768, "model width D")
    num_heads: int = knob(12, "query heads N")
    num_kv_heads: int | None = knob(
        None, "key/value heads K, a divisor of num_heads (arXiv:2305.13245); none = num_heads"
    )
    head_width: int | None = knob(None, "width H of a head; none = width / num_heads")
    feedforward_width: int | None = knob(
        None,
        "inner width F; none = 4 x width, or 8/3 x width rounded up to 32 when gated (as many parameters)",
    )
    feedforward: Any = family(FEEDFORWARD, "dense", "the second half of a block")
    activation: Activation = knob("gelu_tanh", "activation, or gate (swiglu, geglu, geglu_tanh)")
    norm: Literal["layernorm", "rmsnorm"] = knob("layernorm", "kind of norm")
    norm_placement: Literal["pre", "post"] = knob(
        "pre", "norm before each sublayer, and one at the end, or after each residual addition"
    )
    parallel_residual: bool = knob(
        False, "both sublayers read the block's input, and both outputs are added (GPT-NeoX)"
    )
    norm_epsilon: float = knob(1e-5, "added to the variance in norms")
    bias: bool = knob(True, "biases in linear layers and layer norms")
    qkv_bias: bool | None = knob(
        None, "biases of query, key and value projections; none = as `bias`"
    )
    attention_out_bias: bool | None = knob(
        None, "bias of the projection out of attention; none = as `bias`"
    )
    query_key_norm: bool = knob(
        False, "norm of each query and key head, before any rotation (arXiv:2302.05442)"
    )
    positions: Any = family(POSITIONS, "learned", "how the model knows the order of tokens")
    attention: Any = family(ATTENTION, "dot_product", "the attention core")
    attention_pattern: tuple[int, ...] = knob(
        (0,),
        "attention windows in tokens, cycled over layers; 0 = dense: (128,) slides, (0, 128) alternates",
    )
    tied_embeddings: bool = knob(True, "the head uses the token embedding")
    scale_embeddings: bool = knob(
        False, "multiply token embeddings by sqrt(width) (Vaswani et al. 2017, section 3.4)"
    )
    embedding_norm: bool = knob(False, "norm of the summed embeddings (BERT)")
    num_token_types: int = knob(0, "learned token (sentence) types; 0 = none, BERT has 2")
    head_transform: bool = knob(False, "linear layer, GELU and norm before the head (BERT)")
    head_bias: bool = knob(False, "bias [V] on the logits (BERT)")
    logit_softcap: float | None = knob(
        None, "logits are squashed to (-cap, cap) by tanh (arXiv:2408.00118); none = off"
    )
    embedding_dropout: float = knob(0.0, "dropout rate of the summed embeddings", traced=True)
    attention_dropout: float = knob(0.0, "dropout rate of attention probabilities", traced=True)
    residual_dropout: float = knob(0.0, "dropout rate of each attention output", traced=True)
    mlp_dropout: float = knob(0.0, "dropout rate of each feed-forward output", traced=True)
    init_scale: float = knob(1.0, "initial weights are normal with std 0.02 x this", traced=True)
    parametrisation: Any = family(
        PARAMETRISATIONS,
        "standard",
        "how initial weights, multipliers and learning rates depend on the width (mup: arXiv:2203.03466)",
    )
    scale_residual_init: bool = knob(
        True, "initial weights of projections into the residual path also / sqrt(2 L) (GPT-2)"
    )
    dtype: Literal["float32", "bfloat16"] = knob(
        "float32",
        "dtype of matrix products and activations; parameters, softmax, norms and logits stay float32",
    )
    unroll: int = knob(
        0,
        "layers per turn of the loop over layers; 0 = all, no loop: faster, slower to compile",
        mark="execution",
    )
    fold_rows: bool = knob(
        True,
        "position-wise layers see [B*T D] instead of [B T D]: 1.5x faster on CPU; never where a mesh splits T",
        mark="execution",
    )
    attention_kernel: str = knob(
        "auto",
        "how the attention core is computed: reference, xla, cudnn (NVIDIA, bfloat16), cudnn_rows (the same for rows "
        "of one segment), splash (TPU); auto = the fastest for the device that can; none but the reference is used "
        "before its gradients were compared with it",
        mark="execution",
    )
    remat: Literal["none", "dots", "full"] = knob(
        "none",
        "recompute in the backward pass: nothing, all but weight products, or whole blocks",
        mark="execution",
    )

    def __post_init__(self):
        check(self)

    @property
    def kv_heads(self) -> int:
        """Key/value heads K."""
        return self.num_kv_heads or self.num_heads

    @property
    def width_per_head(self) -> int:
        """Head width H."""
        return self.head_width or self.width // self.num_heads

    @property
    def inner_width(self) -> int:
        """Feed-forward width F."""
        return self.feedforward_width or self.inner_width_of(self.width)

    def inner_width_of(self, width: int) -> int:
        """Feed-forward width F that a model width D has, unless `feedforward_width` says so."""
        return -(-8 * width // 96) * 32 if self.activation in GATED else 4 * width

    @property
    def qkv_biased(self) -> bool:
        """Whether query, key and value projections have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def out_biased(self) -> bool:
        """Whether the projection out of attention has a bias."""
        return self.bias if self.attention_out_bias is None else self.attention_out_bias

    @property
    def pre_norm(self) -> bool:
        """Whether norms come before the sublayers."""
        return self.norm_placement == "pre"

    @property
    def residual_init(self) -> float:
        """Factor on initial weights of projections into the residual path."""
        return (2 * self.num_layers) ** -0.5 if self.scale_residual_init else 1.0

    @property
    def growth(self) -> Growth:
        """How many times as wide as the base of muP this model is; 1 in the standard parametrisation."""
        return self.parametrisation.growth(self)

    def learning_rates(self, rule: Rule) -> tuple[tuple[str, float], ...]:
        """(regular expression on a parameter's path, factor on its learning rate), first match wins; none = all one."""
        return learning_rates(self, rule)

    @property
    def windows(self) -> tuple[int, ...]:
        """Attention window of each layer in tokens, DENSE where there is none."""
        pattern = self.attention_pattern
        return tuple(pattern[i % len(pattern)] or DENSE for i in range(self.num_layers))

    def build(self, vocab_size: int, max_length: int) -> Transformer:
        """The Linen module for V tokens and sequences of up to `max_length`.

        Raises:
          RequestError: where the position scheme does not fit the sizes.
        """
        self.positions.build(self.sizes(max_length))
        return Transformer(self, vocab_size, max_length)

    def sizes(self, max_length: int) -> Sizes:
        """What position schemes may need to know."""
        return Sizes(self.width, self.num_heads, self.width_per_head, max_length, self.CAUSAL)


@dataclasses.dataclass(frozen=True)
class DecoderConfig(TransformerConfig):
    """A causal Transformer language model; presets are GPT-2's and GPT-3's sizes."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = DECODERS


@dataclasses.dataclass(frozen=True)
class EncoderConfig(TransformerConfig):
    """A bidirectional Transformer for masked tokens; defaults and presets are BERT's (arXiv:1810.04805)."""

    CAUSAL: ClassVar[bool] = False
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = ENCODERS

    activation: Activation = knob("gelu", "activation, or gate (swiglu, geglu, geglu_tanh)")
    norm_placement: Literal["pre", "post"] = knob(
        "post", "norm before each sublayer, and one at the end, or after each residual addition"
    )
    norm_epsilon: float = knob(1e-12, "added to the variance in norms")
    embedding_norm: bool = knob(True, "norm of the summed embeddings (BERT)")
    head_transform: bool = knob(True, "linear layer, GELU and norm before the head (BERT)")
    head_bias: bool = knob(True, "bias [V] on the logits (BERT)")
    scale_residual_init: bool = knob(
        False, "initial weights of projections into the residual path also / sqrt(2 L) (GPT-2)"
    )
