"""How much of a text does each step from counting to attention explain, when all read equally many tokens of it?

Question: where do an LSTM and a Transformer pass n-grams of order 1 to 6, if every model may read the same number of
tokens once? Modified Kneser-Ney counts (Chen and Goodman 1999), an LSTM (Zaremba et al. 2014, arXiv:1409.2329), a
causal Transformer (Vaswani et al. 2017, arXiv:1706.03762; rotary positions).

    ablax sweep --config=experiments/ablate/ladder.py --workdir=runs/ladder
    ablax report --workdir=runs/ladder

The budget is 400 steps of 2048 tokens; raise `--config.training.steps` and the n-grams count more too. They count whole
documents that the seed draws, the neural models read windows of all documents in an order that the seed draws.

Expected (Python 3.11.7): the 6-gram ends at 1.75 bits per byte on held-out modules, the Transformer at 1.85, a 2-gram
at 2.09 and the LSTM at 2.22; at so little text counting wins from order 4 on, though three seeds do not show it beyond
doubt (p 0.1 over all arms). All 24 cells took 5 min 33 s on two CPU cores that others used too. `:tiny` is a smoke test
of seconds. The whole report: docs/ablations/ladder/report.md.
"""

from ablax.experiment import base
from ablax.sweeps.plan import chain, named, product, seeds

SIZES = ("cpu", "tiny")


def get_config(size: str = "cpu"):
    config = base(model="decoder:tiny", tokenizer="bpe", source="builtin:python_source")
    config.name = f"ladder-{size}"
    config.data.tokenizer.vocab_size = 1024
    config.data.sequence_length = 128
    config.model.num_layers = 2
    config.model.positions = {"kind": "rotary"}
    config.model.init_scale = 2.0
    config.training.steps = 400
    config.training.batch_size = 16
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.1
    config.optimizer.b2 = 0.95
    config.schedule.warmup = 40
    config.evaluation.every = "25%"
    config.evaluation.documents = 16
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
    return config


def get_sweep():
    counted = [
        named(f"{order}-gram", {"model": "ngram", "model.order": order, "model.read": "steps"})
        for order in range(1, 7)
    ]
    lstm = {"model": "lstm:tiny", "data.layout": "streams", "optimizer.learning_rate": 1e-2}
    arms = chain(named("Transformer"), named("LSTM", lstm), *counted)
    return product(arms, seeds(3))
