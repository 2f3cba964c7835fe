"""A causal Transformer language model: GPT-2's and GPT-3's sizes.

Question: how well does a decoder of a published size model the text? Radford et al. 2019 (GPT-2: small, medium, large,
xl); Brown et al. 2020, arXiv:2005.14165, tables 2.1 and appendix B (6.7b, 13b, 175b: alternating dense and banded
layers, batch and learning rate per size).

    ablax train --config=experiments/pretrain/decoder.py:tiny --workdir=runs/decoder
    ablax inspect --config=experiments/pretrain/decoder.py:175b

`:tiny` shows that everything works: 40 steps on the built-in language reference end at 5.29 nats per token, 3.56 bits
per byte (Python 3.11.7), in 9 s of wall time on two CPU cores, and generate noise. The published sizes need
accelerators and a corpus, one document per line of `corpus/*.jsonl.gz` (another place:
--config.data.source=jsonl:GLOB), which `ablax prepare` tokenises beforehand. Karpathy's
nanoGPT reaches 2.85 nats per token with `small` on OpenWebText; these sizes have not been trained here.
"""

from ablax.experiment import base

# size: (rows per batch, peak learning rate, context)
SIZES = {
    "tiny": (8, 1e-3, 64),
    "small": (480, 6e-4, 1024),
    "medium": (480, 3e-4, 1024),
    "large": (480, 2.5e-4, 1024),
    "xl": (480, 2e-4, 1024),
    "6.7b": (1024, 1.2e-4, 2048),
    "13b": (1024, 1e-4, 2048),
    "175b": (1536, 0.6e-4, 2048),
}


def get_config(size: str = "small"):
    batch_size, learning_rate, context = SIZES[size]
    config = base(model=f"decoder:{size}", optimizer="adamw:gpt3", tokenizer="bpe")
    config.name = f"decoder-{size}"
    config.data.tokenizer.vocab_size = 50257
    config.data.sequence_length = context
    config.model.dtype = "bfloat16"
    config.training.batch_size = batch_size
    config.training.steps = "300e9 tokens"
    config.optimizer.learning_rate = learning_rate
    config.schedule.warmup = "375e6 tokens"
    config.evaluation.every = 2000
    config.checkpoint.every = 2000
    if size == "tiny":
        config.data.source.name = "python_reference"
        config.data.tokenizer.vocab_size = 512
        config.model.dtype = "float32"
        config.training.steps = 40
        config.schedule.warmup = 4
        config.evaluation.every = 20
        config.checkpoint.every = 20
    else:
        config.data.source = {"kind": "jsonl", "glob": "corpus/*.jsonl.gz"}
    return config
