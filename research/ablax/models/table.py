"""The table of models."""

from ablax.models.lstm import LstmConfig
from ablax.models.ngram import NgramConfig
from ablax.models.transformer import DecoderConfig, EncoderConfig

MODELS = {
    "decoder": DecoderConfig,
    "encoder": EncoderConfig,
    "lstm": LstmConfig,
    "ngram": NgramConfig,
}
