"""How should a small causal Transformer learn the order of its tokens?

Question: how much do schemes of positions differ at the length that was trained? Learned vectors (Radford et al. 2019),
fixed sinusoids (Vaswani et al. 2017, arXiv:1706.03762, section 3.5), rotations of queries and keys (Su et al. 2021,
arXiv:2104.09864), linear biases (Press et al. 2021, arXiv:2108.12409), learned biases by distance (Raffel et al. 2019,
arXiv:1910.10683, section 2.1), and none (Kazemnejad et al. 2023, arXiv:2305.19466).

    ablax sweep --config=experiments/ablate/positions.py --workdir=runs/positions
    ablax report --workdir=runs/positions

Expected (Python 3.11.7): `:tiny`, a smoke test of 8 steps, ends with learned positions at 5.42 bits per byte, in
25 seconds a cell. `:cpu`, 18 cells of 400 steps, was tried for 100 steps of one (T5's biases: 2.28 bits per byte).
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
    arms = chain(*(named(kind, {"model.positions": kind}) for kind in kinds))
    return product(arms, seeds(3))
