"""The laws that every model of Ablax obeys, for ours: causality, cached decoding, packing, independent rows."""

from sigmoid_attention import SigmoidAttention

from ablax.models.transformer import DecoderConfig
from ablax.testing import check_attention, check_model


def test_attention():
    check_attention(SigmoidAttention)


def test_a_model_with_it():
    check_model(DecoderConfig(num_layers=2, width=16, num_heads=2, attention=SigmoidAttention()))
