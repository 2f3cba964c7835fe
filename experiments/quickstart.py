"""Which classic language model compresses unseen Python best, given the same text and a minute of CPU?

Four baselines on one tokenizer and one split: a 5-gram model (modified Kneser-Ney; Chen and Goodman 1999), an LSTM
(Zaremba et al. 2014), a causal Transformer (Radford et al. 2019, with rotary positions) and, on its own ruler, a masked
one (Devlin et al. 2019; 30 % of the tokens hidden, Wettig et al. 2023). The text is the standard library of the
interpreter that runs this, so nothing is downloaded.

    ablax sweep --config=experiments/quickstart.py --workdir=runs/quickstart
    ablax report --workdir=runs/quickstart

The n-gram model counts the whole training split; the neural ones read 300 steps of 2048 tokens of it. Bits per byte on
held-out modules are exact and comparable between the first three; the masked model's pseudo-likelihood is not a
probability of the text, and the report keeps it apart. Expected (Python 3.11.7): n-gram 1.55 bits per byte, decoder
1.83, LSTM 2.16; the encoder fills 22 % of its masks; in about 3 minutes on two CPU cores. `:tiny` is a smoke test of
seconds.
"""

from ablax.experiment import base
from ablax.sweeps.plan import chain, named, product, seeds

SIZES = ("default", "tiny")


def get_config(size: str = "default"):
    config = base(model="decoder:tiny", tokenizer="bpe", source="builtin:python_source")
    config.name = "quickstart"
    config.data.tokenizer.vocab_size = 2048
    config.data.sequence_length = 128
    config.training.steps = 300
    config.training.batch_size = 16
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.1
    config.optimizer.b2 = 0.95
    config.schedule.warmup = 30
    config.evaluation.every = "25%"
    config.evaluation.documents = 8
    config.evaluation.pseudo_documents = 4
    config.evaluation.pseudo_every = 64
    config.checkpoint.every = "50%"
    if size == "tiny":
        config.data.source.name = "python_reference"
        config.data.tokenizer.vocab_size = 300
        config.data.sequence_length = 32
        config.training.steps = 8
        config.training.batch_size = 4
        config.schedule.warmup = 2
        config.evaluation.documents = 4
    return config


def get_sweep():
    small = {"model.num_layers": 2, "model.positions": "rotary", "model.init_scale": 2.0}
    encoder = {"model": "encoder:tiny", "model.norm_placement": "pre", **small}
    arms = chain(
        named("n-gram", {"model": "ngram:5gram"}),
        named(
            "LSTM",
            {"model": "lstm:tiny", "data.layout": "streams", "optimizer.learning_rate": 1e-2},
        ),
        named("decoder", small),
        named("encoder", {**encoder, "objective": "masked", "objective.rate": 0.3}),
    )
    return product(arms, seeds(2))
