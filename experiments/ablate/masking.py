"""What should a masked Transformer have to guess, and how much of it?

Question: do whole words or spans teach more than single tokens, and 40 % more than 15 %? Devlin et al. 2019
(arXiv:1810.04805: tokens, and later whole words; 15 %); Joshi et al. 2020, SpanBERT (arXiv:1907.10529, section 3.1:
spans of words, lengths geometric, cut at 10); Wettig et al. 2023 (arXiv:2202.08005: 40 % is better where models are
large and data plenty, and at 15 % spans gain more).

    ablax sweep --config=experiments/ablate/masking.py --workdir=runs/masking
    ablax report --workdir=runs/masking

Each arm's own masks are another task, so masked accuracies of two arms must not be compared; all are measured by the
pseudo-log-likelihood (Salazar et al. 2020, arXiv:1910.14659), which hides one token at a time. That ruler lies nearest
to masking single tokens.

Expected (Python 3.11.7): masking 15 % of single tokens ends at 2.41 bits per byte of pseudo-likelihood, 40 % of them at
2.21; whole words cost more (2.71, 2.55) and spans most (2.88, 2.78). Seeds of one arm have a standard deviation of
0.085, so three show none of it beyond doubt (p 0.065 for spans, 0.17 for 40 %): it takes three to seven. All 18 cells
took 16 minutes on two CPU cores that others used too. `:tiny` is a smoke test. The whole report:
docs/ablations/masking/report.md.
"""

from ablax.experiment import base
from ablax.sweeps.plan import Plan, chain, named, product, seeds

SIZES = ("cpu", "tiny")


def get_config(size: str = "cpu"):
    config = base(
        model="encoder:tiny", objective="masked", tokenizer="bpe", source="builtin:python_source"
    )
    config.name = f"masking-{size}"
    config.data.tokenizer.vocab_size = 1024
    config.data.sequence_length = 128
    config.model.num_layers = 2
    config.model.norm_placement = "pre"
    config.model.positions = {"kind": "rotary"}
    config.model.init_scale = 2.0
    config.training.steps = 450
    config.training.batch_size = 16
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.1
    config.optimizer.b2 = 0.95
    config.schedule.warmup = 40
    config.evaluation.every = "50%"
    config.evaluation.documents = 16
    config.evaluation.pseudo_documents = 16
    config.evaluation.pseudo_every = 64
    config.checkpoint.every = "50%"
    if size == "tiny":
        config.data.source.name = "python_reference"
        config.data.tokenizer.vocab_size = 300
        config.data.sequence_length = 64
        config.model.width = 32
        config.training.steps = 8
        config.training.batch_size = 4
        config.schedule.warmup = 2
        config.evaluation.documents = 4
        config.evaluation.pseudo_documents = 2
        config.evaluation.pseudo_every = 64
    return config


def get_sweep():
    arms = chain(
        *(
            named(f"{unit} {rate:.0%}", {"objective.unit": unit, "objective.rate": rate})
            for rate in (0.15, 0.4)
            for unit in ("token", "word", "span")
        )
    )
    return Plan(product(arms, seeds(3)), metric="pseudo_bits_per_byte")
