"""The Transformer as a Linen module: embeddings, a stack of blocks, a vocabulary head."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ablax import placement
from ablax.config import RequestError
from ablax.models.attention import DENSE, Rule
from ablax.models.block import INIT_STD, Block, Context, Layer
from ablax.models.cache import KeyValueCache
from ablax.models.heads import VocabularyHead
from ablax.models.kernels import kernel_of
from ablax.models.layers import Table, dropout, lookup, make_norm
from ablax.shapes import Array, Float, Int, typed

if TYPE_CHECKING:
    from ablax.models.transformer import TransformerConfig

REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def _stack(config: "TransformerConfig", initializing: bool) -> nn.Module:
    """The blocks, one set of parameters [L ...] whatever the execution."""
    # Initialisation runs once, so that compiling one layer instead of L is what counts.
    unroll = 1 if initializing else config.unroll or config.num_layers
    block: Any = Block
    if over_mesh := placement.constrain_layer("blocks"):
        block = nn.map_variables(block, "params", over_mesh)
    if config.remat != "none":
        # Inside a loop XLA cannot merge the recomputation with the forward pass; without a loop it
        # would.
        looped = unroll < config.num_layers
        block = nn.remat(block, policy=REMAT_POLICIES[config.remat], prevent_cse=not looped)
    return nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0, "losses": 0, "reports": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),  # type: ignore[arg-type]
        length=config.num_layers,
        unroll=unroll,
    )(config)


class Transformer(nn.Module):
    """Embeddings, L blocks and a vocabulary head; parameters float32, those of the blocks stacked [L ...].

    Attributes:
      config: its knobs.
      vocab_size: V.
      max_length: longest sequence; learned positions exist below it only.
    """

    config: "TransformerConfig"
    vocab_size: int
    max_length: int

    def setup(self):
        config = self.config
        self.tokens = Table(self.vocab_size, config.width)
        self.positions = config.positions.build(config.sizes(self.max_length))
        if config.num_token_types:
            self.token_types = Table(config.num_token_types, config.width)
        if config.embedding_norm:
            self.embedding_norm = self._norm()
        self.blocks = _stack(config, self.is_initializing())
        if config.pre_norm:
            self.final_norm = self._norm()
        self.head = VocabularyHead(
            self.vocab_size,
            config.head_transform,
            config.head_bias,
            config.logit_softcap,
            config.norm,
            config.norm_epsilon,
            config.dtype,
            config.growth.width,
        )

    def _norm(self) -> nn.Module:
        config = self.config
        return make_norm(config.norm, config.norm_epsilon, config.bias, config.dtype)

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
        token_types: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T V"], Any]:
        """Logits of each position (of the next token if causal), and the carry.

        Args:
          positions: from 0 in each segment.
          segment_ids: 0 = padding; tokens attend within their segment only.
          hyper: the traced knobs of the config as float32 scalars.
          carry: `()`, or a `KeyValueCache` whose next T slots these tokens take.
          train: dropout acts, with the rng stream "dropout".
          token_types: below `num_token_types`; None = all of type 0.

        Returns:
          float32 logits; `()`, or the cache with T more slots.
        """
        features, carry = self.features(
            tokens,
            positions,
            segment_ids,
            hyper=hyper,
            carry=carry,
            train=train,
            token_types=token_types,
        )
        return self.logits(features, hyper=hyper), carry

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
        token_types: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """What the head reads, after the last norm, and the carry; arguments as in `__call__`."""
        config = self.config
        std = INIT_STD * hyper["init_scale"]
        x = self._embed(tokens, positions, token_types, hyper, train)
        cache, keys, key_segments = None, positions, segment_ids
        if carry:
            cache, keys, key_segments = carry.place(positions, segment_ids)
        windows, layer_windows, window = config.windows, None, None
        if len(set(windows)) > 1:
            layer_windows = jnp.asarray(np.array(windows, np.int32))
        elif windows[0] != DENSE:
            window = windows[0]
        rule = Rule(positions, keys, segment_ids, key_segments, config.CAUSAL, window)
        needs_mask = cache is not None or kernel_of(config, train) is None
        context = Context(
            hyper=hyper,
            rule=rule,
            mask=rule.mask() if needs_mask else None,
            rotation=self.positions.rotation(positions),
            bias=self.positions.bias(positions, keys, std),
            slots=None if cache is None else cache.slots,
            train=train,
        )
        layers = Layer(jnp.arange(config.num_layers), layer_windows)
        stored = () if cache is None else (cache.key, cache.value)
        (x, stored), _ = self.blocks((self._fold(x), stored), layers, context)
        if config.pre_norm:
            x = self.final_norm(x)
        x = x.reshape(*tokens.shape, config.width)
        if cache is not None:
            after = cache.slots.replace(index=cache.index + tokens.shape[1])
            carry = cache.replace(key=stored[0], value=stored[1], slots=after)
        return x, carry

    def _fold(self, x: Float[Array, "B T D"]) -> Float[Array, "*rows D"]:
        # XLA's CPU backend multiplies matrices as [B*T D]. The bitcasts from and to [B T D] end up
        # in the loops of neighbouring elementwise operations and keep them from being vectorised.
        # Over a mesh that splits positions [B*T] would not be a sharding.
        folded = self.config.fold_rows and not placement.is_split("T")
        return x.reshape(-1, x.shape[-1]) if folded else x

    def _embed(self, tokens, positions, token_types, hyper, train) -> Float[Array, "B T D"]:
        config = self.config
        std = INIT_STD * hyper["init_scale"]
        x = lookup(self.tokens(std), tokens)
        if config.scale_embeddings:
            # In muP embeddings are of one size at every width, the base's.
            x = x * (config.width / config.growth.width) ** 0.5
        added = self.positions.embedding(positions, std)
        x = x if added is None else x + added
        if config.num_token_types:
            types = jnp.zeros_like(tokens) if token_types is None else token_types
            x = x + lookup(self.token_types(std), types)
        elif token_types is not None:
            raise RequestError("token_types need num_token_types above 0; this model has none")
        if config.embedding_norm:
            x = self.embedding_norm(x)
        if train and config.embedding_dropout != 0:
            x = dropout(x, hyper["embedding_dropout"], self.make_rng("dropout"))
        return placement.constrain(x.astype(config.dtype), "B T D")

    @typed
    def logits(
        self, features: Float[Array, "B T D"], *, hyper: Mapping[str, Any]
    ) -> Float[Array, "B T V"]:
        """The head alone, in float32: for decoding one position, or a loss in chunks of the vocabulary."""
        std = INIT_STD * hyper["init_scale"]
        table = self.tokens(std) if self.config.tied_embeddings else None
        logits = self.head(self._fold(features), table, std)
        return logits.reshape(*features.shape[:2], self.vocab_size)

    def init_carry(self, batch_size: int) -> tuple:
        """The carry of training on streams: none, a Transformer sees one row at a time."""
        return ()

    def init_cache(
        self, batch_size: int, length: int, *, dtype: str | None = None, ring: bool = False
    ) -> KeyValueCache:
        """An empty cache for decoding `length` columns.

        Args:
          dtype: of keys and values; the model's when None.
          ring: keep no more than the widest window, if every layer has one (see `KeyValueCache`).

        Raises:
          RequestError: if the model is bidirectional, and so cannot decode.
        """
        config = self.config
        if not config.CAUSAL:
            raise RequestError(
                "an encoder attends in both directions and has no cache; use a decoder to generate"
            )
        return KeyValueCache.empty(
            config.num_layers,
            batch_size,
            length,
            config.kv_heads,
            config.width_per_head,
            dtype or config.dtype,
            widest if ring and (widest := max(config.windows)) < DENSE else None,
        )
