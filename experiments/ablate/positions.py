"""How should a small causal Transformer learn the order of its tokens?

Question: how much do schemes of positions differ at the length that was trained? Learned vectors (Radford et al. 2019),
fixed sinusoids (Vaswani et al. 2017, arXiv:1706.03762, section 3.5), rotations of queries and keys (Su et al. 2021,
arXiv:2104.09864), linear biases (Press et al. 2021, arXiv:2108.12409), learned biases by distance (Raffel et al. 2019,
arXiv:1910.10683, section 2.1), and none (Kazemnejad et al. 2023, arXiv:2305.19466). Sinusoids have an amplitude of one,
many times that of a token's embedding at the start, so they are tried twice: as they are, and with embeddings
multiplied by the root of the width (Vaswani et al. 2017, section 3.4).

    ablax sweep --config=experiments/ablate/positions.py --workdir=runs/positions
    ablax report --workdir=runs/positions

Expected (Python 3.11.7): learned vectors end at 1.963 bits per byte on held-out modules. Linear biases are better by
0.148 (95 % interval 0.132 to 0.164), rotations by 0.113 (0.101 to 0.125), biases by distance by 0.030 (0.017 to 0.042);
no positions at all make no difference that three seeds show, and sinusoids drown the embeddings (3.06) unless these are
scaled (1.993). A cell takes 80 seconds on a CPU core that others use too, all 21 took 16 minutes on two. `:tiny` is a
smoke test of seconds. The whole report: docs/ablations/positions/report.md.
"""

from ablax.experiment import base
from ablax.sweeps.plan import chain, named, product, seeds

SIZES = ("cpu", "tiny")


def get_config(size: str = "cpu"):
    config = base(model="decoder:tiny", tokenizer="bpe", source="builtin:python_source")
    config.name = f"positions-{size}"
    config.data.tokenizer.vocab_size = 1024
    config.data.sequence_length = 128
    config.model.num_layers = 2
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
    kinds = ("learned", "sinusoidal", "rotary", "alibi", "t5", "none")
    arms = [named(kind, {"model.positions": kind}) for kind in kinds]
    scaled = {"model.positions": "sinusoidal", "model.scale_embeddings": True}
    return product(chain(*arms, named("sinusoidal, scaled embeddings", scaled)), seeds(3))
