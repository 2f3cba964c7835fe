"""Published sizes of Transformers: what `decoder:small` or `encoder:base` chooses; `tiny` is for a look on a CPU."""

from typing import Any

from ablax.models.feedforward import ExpertsConfig
from ablax.models.positions import RotaryPositions


def _preset(layers: int, width: int, heads: int, **others: Any) -> dict[str, Any]:
    return {"num_layers": layers, "width": width, "num_heads": heads, **others}


# GPT-2's four sizes (Radford et al. 2019, table 2) and three of GPT-3's (arXiv:2005.14165, table 2.1), whose layers
# alternate dense and banded attention. The width of the band is unpublished: 128 is what Sparse Transformers
# (arXiv:1904.10509) used on text. For 13b the paper prints width 5140 = 40 x 128.5; 5120 is meant.
DECODERS: dict[str, dict[str, Any]] = {
    "tiny": _preset(4, 128, 4),
    "small": _preset(12, 768, 12),
    "medium": _preset(24, 1024, 16),
    "large": _preset(36, 1280, 20),
    "xl": _preset(48, 1600, 25),
    "6.7b": _preset(32, 4096, 32, attention_pattern=(0, 128)),
    "13b": _preset(40, 5120, 40, attention_pattern=(0, 128)),
    "175b": _preset(96, 12288, 96, attention_pattern=(0, 128)),
    # Mixtral 8x7B (arXiv:2401.04088, table 1).
    "8x7b": _preset(
        32,
        4096,
        32,
        num_kv_heads=8,
        feedforward_width=14336,
        feedforward=ExpertsConfig(),
        activation="swiglu",
        norm="rmsnorm",
        bias=False,
        positions=RotaryPositions(base=1e6),
        tied_embeddings=False,
        scale_residual_init=False,
    ),
}

# BERT's (arXiv:1810.04805, section 3).
ENCODERS: dict[str, dict[str, Any]] = {
    "tiny": _preset(4, 128, 4),
    "base": _preset(12, 768, 12),
    "large": _preset(24, 1024, 16),
}
