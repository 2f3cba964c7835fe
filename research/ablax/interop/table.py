"""The table of families."""

from ablax.interop.decoders import GPT2, LLAMA, MISTRAL, NEOX, QWEN2, QWEN3
from ablax.interop.encoders import BERT, ROBERTA

FAMILIES = {
    family.name: family for family in (GPT2, NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, BERT, ROBERTA)
}
"""By `model_type` of config.json; the first that fits is exported."""
