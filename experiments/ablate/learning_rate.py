"""Does the best learning rate of a small model stay the best one when the model gets wider?

Question: the learning rate of a small causal Transformer is tuned at three widths, twice: with the standard
parametrisation, where the optimum is expected to fall as the width grows, and with muP (Yang et al. 2022,
arXiv:2203.03466, figure 1), where it should stay where it is, so that it can be tuned on the narrow model. At a width
of 64, muP's base, the two are the same model.

    ablax sweep --config=experiments/ablate/learning_rate.py --workdir=runs/learning_rate
    ablax report --workdir=runs/learning_rate

A curve of six rates for each width and parametrisation, one seed: it shows where an optimum lies within a factor of
two, and no interval for a difference. More seeds: `seeds(3)` below, at three times the time.

Expected (Python 3.11.7): at widths of 64, 128 and 256 the best rate is 0.004, 0.004 and 0.002 with the standard
parametrisation (2.634, 2.416 and 2.401 bits per byte), and 0.004 at each with muP (2.634, 2.496, 2.514), which at these
sizes is no better than what it replaces. All 36 cells took 18 minutes on two CPU cores that others used too. `:tiny` is
a smoke test of seconds a cell. The whole report: docs/ablations/learning_rate/report.md.
"""

from ablax.experiment import base
from ablax.sweeps.plan import Plan, chain, named, product, seeds

SIZES = ("cpu", "tiny")

WIDTHS = (64, 128, 256)
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
BASE = {"model.parametrisation.width": 64, "model.parametrisation.num_heads": 4}


def get_config(size: str = "cpu"):
    config = base(model="decoder:tiny", tokenizer="bpe", source="builtin:python_source")
    config.name = f"learning-rate-{size}"
    config.data.tokenizer.vocab_size = 512
    config.data.sequence_length = 64
    config.model.num_layers = 2
    config.model.init_scale = 2.0
    config.training.steps = 200
    config.training.batch_size = 16
    config.optimizer.weight_decay = 0.1
    config.optimizer.b2 = 0.95
    config.schedule.warmup = 20
    config.evaluation.every = "50%"
    config.evaluation.documents = 16
    config.checkpoint.every = 0
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
    kinds = chain(named("standard"), named("mup", {"model.parametrisation": "mup", **BASE}))
    widths = chain(*(named(f"width {width}", {"model.width": width}) for width in WIDTHS))
    rates = chain(*(named(f"rate {rate:g}", {"optimizer.learning_rate": rate}) for rate in RATES))
    cells = product(kinds, widths, rates, seeds(1))
    return Plan(cells, baseline="standard,width 64,rate 0.004")
