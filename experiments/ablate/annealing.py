"""How much does a decay of the learning rate at the end give a small causal Transformer, and does its shape matter?

Question: three runs at a constant rate are each taken to their end four times over the last quarter: with the rate as
it was, and with a decay to zero that is linear, half a cosine, or 1 - sqrt (Hägele et al. 2024, arXiv:2405.18392,
section 3, where 1 - sqrt was the best by a little). The arms are branches of one trunk for each seed, which is trained
once: they differ in nothing else, and pairing takes out all that the trunks differ in.

    ablax sweep --config=experiments/ablate/annealing.py --workdir=runs/annealing
    ablax report --workdir=runs/annealing

Expected (Python 3.11.7): a constant rate ends at 1.864 bits per byte; a linear decay is better by 0.051 (95 % interval
0.036 to 0.065), 1 - sqrt by 0.047 and half a cosine by 0.043 (p 0.014 each, over all arms); between the three shapes
nothing is claimed. 3 trunks of 300 steps and 12 branches of 100 took 9 min 22 s on two CPU cores that others used too.
`:tiny` is a smoke test of seconds. The whole report: docs/ablations/annealing/report.md.
"""

from ablax.experiment import base
from ablax.sweeps.plan import branch, chain, named, product, seeds

SIZES = ("cpu", "tiny")

TRUNK, STEPS, WARMUP = 300, 400, 40


def get_config(size: str = "cpu"):
    config = base(
        model="decoder:tiny",
        tokenizer="bpe",
        source="builtin:python_source",
        schedule="constant",
    )
    config.name = f"annealing-{size}"
    config.data.tokenizer.vocab_size = 1024
    config.data.sequence_length = 128
    config.model.num_layers = 2
    config.model.positions = {"kind": "rotary"}
    config.model.init_scale = 2.0
    config.training.steps = STEPS
    config.training.batch_size = 16
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.1
    config.optimizer.b2 = 0.95
    config.schedule.warmup = WARMUP
    config.evaluation.every = 100
    config.evaluation.documents = 16
    config.checkpoint.every = 0
    if size == "tiny":
        config.data.source.name = "python_reference"
        config.data.tokenizer.vocab_size = 300
        config.data.sequence_length = 32
        config.model.width = 16
        config.training.batch_size = 2
        config.evaluation.documents = 2
    return config


def decayed(shape: str):
    schedule = {"warmup": WARMUP, "decay": STEPS - TRUNK, "shape": shape}
    changes = {f"schedule.{name}": value for name, value in schedule.items()}
    return named(shape, {"schedule.kind": "wsd", **changes})


def get_sweep():
    arms = chain(named("constant"), *map(decayed, ("linear", "cosine", "1-sqrt")))
    return product(branch({}, TRUNK, arms), seeds(3))
