"""Where do norms belong in a small causal Transformer, and which ones?

Question: what do the place of the norms (before each sublayer: Xiong et al. 2020, arXiv:2002.04745; after each
addition: Vaswani et al. 2017, arXiv:1706.03762), their kind (LayerNorm: Ba et al. 2016, arXiv:1607.06450; RMSNorm:
Zhang and Sennrich 2019, arXiv:1910.07467) and norms of queries and keys (Henry et al. 2020, arXiv:2010.04245) change,
and do they add up? A factorial plan: every combination of the three.

    ablax sweep --config=experiments/ablate/norm.py --workdir=runs/norm
    ablax report --workdir=runs/norm

Expected (Python 3.11.7), at 300 steps: norms after the additions cost 0.053 bits per byte (95 % interval 0.049 to
0.058), norms of queries and keys gain 0.019 (0.014 to 0.024), more so where norms come after the additions, and the
kind of norm makes no difference that shows: main effects over all 24 cells, where three seeds of an arm alone prove
nothing (p 0.07 to 0.15). It took 35 minutes on two CPU cores that others used most of the time. `:tiny` is a smoke test
of seconds. The whole report: docs/ablations/norm/report.md.
"""

from ablax.experiment import base
from ablax.sweeps.plan import factorial, product, seeds

SIZES = ("cpu", "tiny")

PARTS = {
    "post": ({"model.norm_placement": "post"}, {"model.norm_placement": "pre"}),
    "rms": ({"model.norm": "rmsnorm"}, {"model.norm": "layernorm"}),
    "qk": ({"model.query_key_norm": True}, {"model.query_key_norm": False}),
}


def get_config(size: str = "cpu"):
    config = base(model="decoder:tiny", tokenizer="bpe", source="builtin:python_source")
    config.name = f"norm-{size}"
    config.data.tokenizer.vocab_size = 1024
    config.data.sequence_length = 128
    config.model.num_layers = 2
    config.model.positions = {"kind": "rotary"}
    config.model.init_scale = 2.0
    config.training.steps = 300
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
    return product(factorial(PARTS), seeds(3))
