"""The LSTM language model: knobs and Linen module."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from ablax.config import RequestError, knob
from ablax.models.layers import dropout, lookup
from ablax.models.lstm_layers import Embedding, Head, LstmLayer
from ablax.placement import constrain
from ablax.shapes import Array, Float, Int, typed

DROPOUTS = ("embedding", "input", "hidden", "output")


@dataclasses.dataclass(frozen=True)
class LstmConfig:
    """An LSTM language model with the regularisation of Merity et al. 2017 (arXiv:1708.02182).

    Presets: `tiny` for a quick look on a CPU; `small` and `large` are the medium and large models of Zaremba et al.
    2014 (arXiv:1409.2329, section 4.1), whose dropout, however, draws a mask per time step, here one per sequence;
    `awd` is Merity et al.'s with their rates for the Penn Treebank (sections 4.3, 5), except that every weight starts
    within 1/sqrt(1150), embeddings (0.1 there) too.

    Dropout of inputs, between layers and of outputs is variational (Gal & Ghahramani 2016, arXiv:1512.05287): one mask
    per row, the same at every time step.
    """

    CAUSAL: ClassVar[bool] = True
    RECURRENT: ClassVar[bool] = True
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # Zaremba's 0.05 suits widths of 650 and more: at 128 the first layers would pass on next to nothing.
        "tiny": {"num_layers": 2, "width": 128, "tied_embeddings": True, "init_scale": 0.2},
        "small": {
            "num_layers": 2,
            "width": 650,
            "dropout_input": 0.5,
            "dropout_hidden": 0.5,
            "dropout_output": 0.5,
            "forget_bias": 0.0,
            "init_scale": 0.05,
        },
        "large": {
            "num_layers": 2,
            "width": 1500,
            "dropout_input": 0.65,
            "dropout_hidden": 0.65,
            "dropout_output": 0.65,
            "forget_bias": 0.0,
            "init_scale": 0.04,
        },
        "awd": {
            "num_layers": 3,
            "width": 400,
            "hidden_width": 1150,
            "tied_embeddings": True,
            "dropout_embedding": 0.1,
            "dropout_input": 0.4,
            "dropout_hidden": 0.3,
            "dropout_output": 0.4,
            "weight_drop": 0.5,
            "forget_bias": 0.0,
            "init_scale": 0.0295,
        },
    }

    num_layers: int = knob(2, "number of LSTM layers L")
    width: int = knob(650, "embedding width D; when tied also the width of the last layer")
    hidden_width: int | None = knob(None, "width H of the other layers; none = width")
    tied_embeddings: bool = knob(False, "the head uses the token embedding (arXiv:1608.05859)")
    layer_norm: bool = knob(
        False, "layer norm (arXiv:1607.06450) of each layer's outputs; not inside the recurrence"
    )
    dropout_embedding: float = knob(
        0.0, "rate at which whole words lose their embedding for a step (Merity, 4.3)", traced=True
    )
    dropout_input: float = knob(0.0, "variational dropout rate of embeddings", traced=True)
    dropout_hidden: float = knob(0.0, "variational dropout rate between layers", traced=True)
    dropout_output: float = knob(0.0, "variational dropout rate before the head", traced=True)
    weight_drop: float = knob(
        0.0,
        "dropout rate of the recurrent weights, a mask per step (Merity, section 2)",
        traced=True,
    )
    forget_bias: float = knob(1.0, "initial bias of forget gates; other biases are 0", traced=True)
    init_scale: float = knob(
        0.05, "weights start uniform in (-init_scale, init_scale) (Zaremba)", traced=True
    )
    dtype: Literal["float32", "bfloat16"] = knob(
        "float32",
        "dtype of matrix products and activations; parameters, cells, norms and logits stay float32",
    )
    unroll: int = knob(2, "time steps per turn of the forward loop", mark="execution")

    def __post_init__(self):
        for name in ("num_layers", "width", "unroll"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name}={getattr(self, name)} must be at least 1")
        if self.hidden_width is not None and self.hidden_width < 1:
            raise RequestError(f"hidden_width={self.hidden_width} must be at least 1, or none")
        for name in (*(f"dropout_{place}" for place in DROPOUTS), "weight_drop"):
            rate = getattr(self, name)
            if rate < 0 or rate >= 1:
                raise RequestError(f"{name}={rate} must be in [0, 1)")
        if self.init_scale <= 0:
            raise RequestError(f"init_scale={self.init_scale} must be above 0")

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Width H of each layer; when tied the last one has the width of the embedding."""
        hidden = self.hidden_width or self.width
        last = self.width if self.tied_embeddings else hidden
        return (hidden,) * (self.num_layers - 1) + (last,)

    def build(self, vocab_size: int, max_length: int) -> "LstmLanguageModel":
        """The Linen module for V tokens; an LSTM has no longest sequence, so `max_length` does not matter to it."""
        return LstmLanguageModel(self, vocab_size)


class LstmLanguageModel(nn.Module):
    """Embeddings, L layers and a vocabulary head; parameters float32, computation time-major.

    Attributes:
      config: its knobs.
      vocab_size: V.
    """

    config: LstmConfig
    vocab_size: int

    def setup(self):
        config = self.config
        self.table = Embedding(self.vocab_size, config.width)
        self.head = Head(self.vocab_size)
        # Their parameters lie beside the layers: `embedding`, `head_kernel`, `head_bias`.
        nn.share_scope(self, self.table)
        nn.share_scope(self, self.head)
        self.lstm = [LstmLayer(width, config.unroll) for width in config.layer_widths]
        if config.layer_norm:
            self.norm = [
                nn.LayerNorm(epsilon=1e-5, dtype=jnp.dtype(config.dtype))
                for _ in config.layer_widths
            ]

    @typed
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        *,
        hyper: Mapping[str, Any],
        carry: Any = (),
        train: bool = False,
    ) -> tuple[Float[Array, "B T V"], Any]:
        """Logits of the next token at each position, and the state after the last one.

        Args:
          positions: from 0 in each segment; the state starts afresh where it is 0.
          segment_ids: 0 = padding, which leaves the state as it is.
          hyper: the traced knobs of the config as float32 scalars.
          carry: `()` for zeros, or (h, c), each float32 [B H], of every layer.
          train: dropout acts, with the rng stream "dropout".

        Returns:
          float32 logits; the carry, never `()`.
        """
        features, after = self.features(
            tokens, positions, segment_ids, hyper=hyper, carry=carry, train=train
        )
        return self.logits(features, hyper=hyper), after

    @typed
    def features(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        *,
        hyper: Mapping[str, Any],
        carry: Any = (),
        train: bool = False,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """What the head reads, and the state after the last position; arguments as in `__call__`."""
        config = self.config
        update = segment_ids.T != 0
        reset = positions.T == 0
        states = carry or self.init_carry(tokens.shape[0])
        x = self._embed(self.table(hyper), tokens.T, hyper, train)
        after = []
        for n, state in enumerate(states):
            x = self._drop(x, "hidden" if n else "input", hyper, train)
            weight_drop = train and config.weight_drop != 0
            x, state = self.lstm[n](x, state, reset, update, hyper, weight_drop)
            if config.layer_norm:
                x = self.norm[n](x)
            after.append(state)
            self.sow("intermediates", "output", x.swapaxes(0, 1))
        x = self._drop(x, "output", hyper, train)
        return x.swapaxes(0, 1), tuple(after)

    @typed
    def logits(
        self, features: Float[Array, "B T D"], *, hyper: Mapping[str, Any]
    ) -> Float[Array, "B T V"]:
        """The head alone, in float32."""
        return self.head(
            features, self.table(hyper) if self.config.tied_embeddings else None, hyper
        )

    def _embed(self, table: Array, tokens: Array, hyper: Mapping[str, Any], train: bool) -> Array:
        """The rows of the table [T B D], where words are dropped in all places or none."""
        x = lookup(table, tokens)
        if train and self.config.dropout_embedding != 0:
            ones = jnp.ones(self.vocab_size)
            kept = dropout(ones, hyper["dropout_embedding"], self.make_rng("dropout"))
            x = x * kept[tokens][..., None]
        return constrain(x.astype(self.config.dtype), "T B D")

    def _drop(self, x: Array, place: str, hyper: Mapping[str, Any], train: bool) -> Array:
        """Variational dropout: one mask [B D] over all time steps."""
        name = f"dropout_{place}"
        if not train or getattr(self.config, name) == 0:
            return x
        # The mask in float32: its 1 / (1 - rate), rounded to bfloat16, would scale all of x.
        mask = dropout(jnp.ones(x.shape[1:]), hyper[name], self.make_rng("dropout"))
        return (x * mask[None]).astype(x.dtype)

    def init_carry(self, batch_size: int) -> tuple[tuple[Array, Array], ...]:
        """Zeros: h and c [B H] of every layer, to train on streams."""
        shapes = [(batch_size, width) for width in self.config.layer_widths]
        return tuple((jnp.zeros(shape), jnp.zeros(shape)) for shape in shapes)

    def init_cache(self, batch_size: int, length: int) -> tuple[tuple[Array, Array], ...]:
        """The same zeros: decoding needs no more, however long."""
        return self.init_carry(batch_size)
