"""Which classic language model compresses unseen Python best, at equal tokens?

Four baselines on one tokenizer and one split: a 5-gram model (modified Kneser-Ney; Chen and Goodman 1999), an LSTM
(Zaremba et al. 2014), a causal Transformer (Radford et al. 2019) and, on its own ruler, a masked one (Devlin et al.
2019). The text is the standard library of the interpreter that runs this, so nothing is downloaded.

    ablax sweep --config=experiments/quickstart.py --workdir=runs/quickstart
    ablax report --workdir=runs/quickstart

Bits per byte on held-out modules are exact and comparable between the first three; the masked model's pseudo-likelihood
is not a probability of the text, and the report keeps it apart. `:tiny` is a smoke test of a few seconds.
"""

from ablax.experiment import base
from ablax.sweeps.plan import chain, named, product, seeds

SIZES = ("default", "tiny")


def get_config(size: str = "default"):
    config = base(model="decoder:tiny", tokenizer="bpe", source="builtin:python_source")
    config.name = "quickstart"
    config.data.tokenizer.vocab_size = 2048
    config.data.sequence_length = 128
    config.training.steps = 400
    config.training.batch_size = 16
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.1
    config.optimizer.b2 = 0.95
    config.schedule.warmup = 40
    config.evaluation.every = "25%"
    config.evaluation.documents = 24
    config.checkpoint.every = "50%"
    if size == "tiny":
        config.data.source.name = "python_reference"
        config.data.tokenizer.vocab_size = 300
        config.data.sequence_length = 32
        config.model.num_layers = 2
        config.model.width = 32
        config.model.num_heads = 2
        config.training.steps = 8
        config.training.batch_size = 4
        config.schedule.warmup = 2
        config.evaluation.documents = 4
    return config


def get_sweep():
    arms = chain(
        named("n-gram", {"model": "ngram:5gram"}),
        named("LSTM", {"model": "lstm:tiny", "data.layout": "streams"}),
        named("decoder"),
        named("encoder", {"model": "encoder:tiny", "objective": "masked"}),
    )
    return product(arms, seeds(2))
