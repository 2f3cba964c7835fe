"""The Transformer's knobs: causal decoder and bidirectional encoder from one configuration."""

import dataclasses
from typing import Any, ClassVar, Literal

from ablax.config import RequestError, cross_check, family, knob
from ablax.models.attention import ATTENTION, DENSE
from ablax.models.feedforward import FEEDFORWARD
from ablax.models.kernels import check_name
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
    norm_epsilon: float = knob(1e-5, "added to the variance in norms")
    bias: bool = knob(True, "biases in linear layers and layer norms")
    qkv_bias: bool | None = knob(
        None, "biases of query, key and value projections; none = as `bias`"
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
        for name in ("num_layers", "width", "num_heads"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("num_kv_heads", "head_width", "feedforward_width"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RequestError(f"{name}={getattr(self, name)} must be at least 1, or none")
        for name in ("embedding", "attention", "residual", "mlp"):
            rate = getattr(self, f"{name}_dropout")
            if rate < 0 or rate >= 1:
                raise RequestError(f"{name}_dropout={rate} must be in [0, 1)")
        if self.head_width is None and self.width % self.num_heads:
            raise cross_check(
                "num_heads",
                self.num_heads,
                f"does not divide width={self.width}",
                "choose a divisor, or set head_width",
            )
        if self.num_heads % self.kv_heads:
            raise cross_check(
                "num_kv_heads",
                self.num_kv_heads,
                f"does not divide num_heads={self.num_heads}",
                "choose a divisor, or none",
            )
        if not self.attention_pattern or min(self.attention_pattern) < 0:
            raise RequestError(
                f"attention_pattern={self.attention_pattern} must name windows in tokens, 0 for dense: 0 or 0,128"
            )
        check_name(self.attention_kernel, self.attention)
        if self.unroll < 0 or self.num_token_types < 0:
            raise RequestError("unroll and num_token_types must be 0 or more")
        if self.norm_epsilon <= 0 or self.init_scale <= 0:
            raise RequestError("norm_epsilon and init_scale must be above 0")
        if self.logit_softcap is not None and self.logit_softcap <= 0:
            raise RequestError(f"logit_softcap={self.logit_softcap} must be above 0, or none")
        self.parametrisation.growth(self)

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
