"""Positions: how a Transformer knows the order of its tokens.

A scheme may act in three places, each a method of `Positions`: vectors added to the token
embeddings, a rotation of queries and keys, a bias on the attention logits. Positions count from 0
within each segment.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ablax.config import RequestError, family, knob
from ablax.models.layers import lookup
from ablax.models.relative import alibi_slopes, t5_buckets
from ablax.models.rotary_scaling import SCALINGS
from ablax.shapes import Array, Float, Int, typed


class Sizes(NamedTuple):
    """What a scheme may need to know about the model that it serves."""

    width: int
    num_heads: int
    head_width: int
    max_length: int
    causal: bool


Rotation = tuple[Float[Array, "B T R"], Float[Array, "B T R"]]
"""Cosines and sines of the angles by which R pairs of each head are turned."""


class Positions(nn.Module):
    """A scheme that does nothing; the others override one of the three methods.

    Attributes:
      config: the scheme's config dataclass.
      sizes: of the model.
    """

    config: "NoPositions"
    sizes: Sizes

    def embedding(
        self, positions: Int[Array, "B T"], std: float | Array
    ) -> Float[Array, "B T D"] | None:
        """What is added to the token embeddings; `std` is the scale of initial parameters."""
        return None

    def rotation(self, positions: Int[Array, "B T"]) -> Rotation | None:
        """How queries and keys at these positions are turned, see `rotate`."""
        return None

    def bias(
        self,
        query_positions: Int[Array, "B T"],
        key_positions: Int[Array, "B S"],
        std: float | Array,
    ) -> Float[Array, "B N T S"] | None:
        """What is added to the attention logits of every layer."""
        return None


class LearnedModule(Positions):
    """See `LearnedPositions`."""

    @nn.compact
    def embedding(self, positions, std):
        config: LearnedPositions = self.config  # type: ignore[assignment]
        offset = config.offset
        shape = ((config.length or self.sizes.max_length) + offset, self.sizes.width)
        table = self.param("embedding", nn.initializers.normal(std), shape)
        return lookup(table, positions + offset if offset else positions)


class SinusoidalModule(Positions):
    """See `SinusoidalPositions`."""

    def embedding(self, positions, std):
        angles = _angles(positions, _frequencies(self.sizes.width, self.config.base))  # type: ignore[attr-defined]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class RotaryModule(Positions):
    """See `RotaryPositions`."""

    def rotation(self, positions):
        config: RotaryPositions = self.config  # type: ignore[assignment]
        rotated = 2 * int(self.sizes.head_width * config.fraction / 2)
        plain = _frequencies(rotated, config.base)
        frequencies, size = config.scaling.build(plain, config.base)
        angles = _angles(positions, frequencies)
        cosine, sine = jnp.cos(angles), jnp.sin(angles)
        return (cosine, sine) if size == 1 else (size * cosine, size * sine)


class AlibiModule(Positions):
    """See `AlibiPositions`."""

    def bias(self, query_positions, key_positions, std):
        slopes = jnp.asarray(alibi_slopes(self.sizes.num_heads), jnp.float32)
        distance = jnp.abs(query_positions[:, :, None] - key_positions[:, None, :])
        return -slopes[None, :, None, None] * distance[:, None].astype(jnp.float32)


class T5Module(Positions):
    """See `T5Positions`."""

    @nn.compact
    def bias(self, query_positions, key_positions, std):
        config: T5Positions = self.config  # type: ignore[assignment]
        table = self.param(
            "embedding",
            nn.initializers.normal(std),
            (config.num_buckets, self.sizes.num_heads),
        )
        relative = key_positions[:, None, :] - query_positions[:, :, None]
        buckets = t5_buckets(
            relative,
            causal=self.sizes.causal,
            num_buckets=config.num_buckets,
            max_distance=config.max_distance,
        )
        return jnp.moveaxis(jnp.take(table, buckets, axis=0), -1, 1)


@typed
def rotate(x: Float[Array, "B T N H"], rotation: Rotation) -> Float[Array, "B T N H"]:
    """Turns the pairs (x[i], x[i + R]), i < R, of every head; features from 2R on stay (arXiv:2104.09864, eq. 34).

    The halves convention of GPT-NeoX and Llama. Computed in float32: angles grow with the position.
    """
    cosine, sine = (part[:, :, None, :] for part in rotation)
    pairs = cosine.shape[-1]
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate([*(part.astype(x.dtype) for part in turned), rest], axis=-1)


def _frequencies(width: int, base: float) -> Float[Array, "half"]:
    return base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)


def _angles(
    positions: Int[Array, "B T"], frequencies: Float[Array, "half"]
) -> Float[Array, "B T half"]:
    return positions[:, :, None].astype(jnp.float32) * frequencies[None, None, :]


@dataclasses.dataclass(frozen=True)
class NoPositions:
    """No positions: a causal model infers order from what each token can see (arXiv:2305.19466)."""

    PER_HEAD: ClassVar[bool] = False
    """Whether a learned table has a column for each head, instead of one for each feature of the model."""

    def build(self, sizes: Sizes) -> Positions:
        """The Linen module that holds the scheme's parameters and its three methods, see `Positions`."""
        return Positions(self, sizes)


@dataclasses.dataclass(frozen=True)
class LearnedPositions(NoPositions):
    """A learned vector for each position below the sequence length, added to the token embedding (GPT-2, BERT)."""

    length: int | None = knob(
        None, "positions that the table has, at least the sequence length; none = as many"
    )
    offset: int = knob(0, "rows of the table before that of position 0 (RoBERTa: 2)")

    def __post_init__(self):
        if self.offset < 0:
            raise RequestError(f"positions.offset={self.offset} must be 0 or more")

    def build(self, sizes: Sizes) -> Positions:
        """See `NoPositions.build`."""
        if self.length is not None and self.length < sizes.max_length:
            raise RequestError(
                f"positions.length={self.length} is less than the {sizes.max_length} tokens of a row; lower "
                "data.sequence_length, or raise it"
            )
        return LearnedModule(self, sizes)


@dataclasses.dataclass(frozen=True)
class SinusoidalPositions(NoPositions):
    """Fixed sines and cosines added to the token embedding (Vaswani et al. 2017, section 3.5).

    Sines fill the first half of the features and cosines the second, a permutation of the paper's
    order.
    """

    base: float = knob(10000.0, "longest wavelength is 2 pi times this, in tokens")

    def __post_init__(self):
        if self.base <= 1:
            raise RequestError(f"positions.base={self.base} must be above 1; 10000 is usual")

    def build(self, sizes: Sizes) -> Positions:
        """See `NoPositions.build`."""
        if sizes.width % 2:
            raise RequestError(
                f"width={sizes.width} is odd, and sinusoidal positions need pairs; use an even width"
            )
        return SinusoidalModule(self, sizes)


@dataclasses.dataclass(frozen=True)
class RotaryPositions(NoPositions):
    """Queries and keys are turned by angles proportional to their positions (arXiv:2104.09864)."""

    base: float = knob(10000.0, "longest wavelength is 2 pi times this, in tokens")
    fraction: float = knob(1.0, "share of each head's features that is turned (GPT-NeoX: 0.25)")
    scaling: Any = family(SCALINGS, "none", "how pairs are turned in texts longer than in training")

    def __post_init__(self):
        if self.base <= 1:
            raise RequestError(f"positions.base={self.base} must be above 1; 10000 is usual")
        if not 0 < self.fraction <= 1:
            raise RequestError(f"positions.fraction={self.fraction} must be in (0, 1]")

    def build(self, sizes: Sizes) -> Positions:
        """See `NoPositions.build`."""
        if int(sizes.head_width * self.fraction / 2) == 0 or sizes.head_width % 2:
            raise RequestError(
                f"head_width={sizes.head_width} with positions.fraction={self.fraction} cannot be turned in pairs; "
                "use an even head width, or a larger fraction"
            )
        return RotaryModule(self, sizes)


@dataclasses.dataclass(frozen=True)
class AlibiPositions(NoPositions):
    """Logits fall linearly with the distance, at a fixed slope a head (arXiv:2108.12409)."""

    def build(self, sizes: Sizes) -> Positions:
        """See `NoPositions.build`."""
        return AlibiModule(self, sizes)


@dataclasses.dataclass(frozen=True)
class T5Positions(NoPositions):
    """A learned bias for each head and bucket of relative positions, shared by all layers (arXiv:1910.10683)."""

    PER_HEAD: ClassVar[bool] = True

    num_buckets: int = knob(32, "number of buckets; a bidirectional model splits them in two")
    max_distance: int = knob(128, "distance in tokens from which on all share the last bucket")

    def __post_init__(self):
        if self.num_buckets < 4 or self.num_buckets % 2:
            raise RequestError(
                f"positions.num_buckets={self.num_buckets} must be even and at least 4"
            )
        if self.max_distance <= self.num_buckets // 2:
            raise RequestError(
                f"positions.max_distance={self.max_distance} must exceed half of num_buckets={self.num_buckets}"
            )

    def build(self, sizes: Sizes) -> Positions:
        """See `NoPositions.build`."""
        return T5Module(self, sizes)


POSITIONS = {
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "rotary": RotaryPositions,
    "alibi": AlibiPositions,
    "t5": T5Positions,
    "none": NoPositions,
}
