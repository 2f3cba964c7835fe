"""The laws that every model of Ablax obeys, for ours: causality, cached decoding, packing, independent rows."""

from ablax.testing import check_model
from sigmoid_attention import SigmoidAttention

from ablax.models.transformer import DecoderConfig


def test_laws():
    check_model(DecoderConfig(num_layers=2, width=32, num_heads=2, attention=SigmoidAttention()))
