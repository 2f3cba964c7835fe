"""Which parts of an attention layer earn their place in a small causal Transformer?

Question: what does a model lose when one part is taken out of the full block and all others stay? The parts are
several query heads (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2; one head in their place), one key and value
head that they share (Shazeer 2019, arXiv:1911.02150; one for each in its place), a window of 32 tokens (Child et al.
2019, arXiv:1904.10509; all 128 in its place) and norms of queries and keys (Henry et al. 2020, arXiv:2010.04245).

    ablax sweep --config=experiments/ablate/attention.py --workdir=runs/attention
    ablax report --workdir=runs/attention

One head as wide as four needs key and value projections four times as wide, as does a key and value head for each query
head: those two arms have more parameters than the full block, which the report shows.

Expected (Python 3.11.7): the full block ends at 1.840 bits per byte on held-out modules. Without the window it is worse
by 0.018 (95 % interval 0.010 to 0.026, p 0.046 over all arms); one key and value head, or no norms, make no difference
that three seeds show. A cell takes 44 seconds on one free CPU core; all 15 took 9 min 36 s on two busy ones. `:tiny` is
a smoke test of seconds. The whole report: docs/ablations/attention/report.md.
"""

from ablax.experiment import base
from ablax.sweeps.plan import leave_one_out, product, seeds

SIZES = ("cpu", "tiny")

PARTS = {
    "heads": ({"model.num_heads": 4}, {"model.num_heads": 1}),
    "shared keys": ({"model.num_kv_heads": 1}, {"model.num_kv_heads": None}),
    "window": ({"model.attention_pattern": (32,)}, {"model.attention_pattern": (0,)}),
    "qk-norm": ({"model.query_key_norm": True}, {"model.query_key_norm": False}),
}


def get_config(size: str = "cpu"):
    config = base(model="decoder:tiny", tokenizer="bpe", source="builtin:python_source")
    config.name = f"attention-{size}"
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
    return product(leave_one_out(PARTS), seeds(3))
