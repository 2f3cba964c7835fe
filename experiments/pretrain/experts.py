"""A mixture of experts: more parameters at the same cost of a token.

Question: what do eight networks in place of one gain, of which each token visits two? Shazeer et al. 2017
(arXiv:1701.06538); Fedus et al. 2021, Switch Transformer (arXiv:2101.03961); Jiang et al. 2024, Mixtral
(arXiv:2401.04088: 46.7 billion parameters, of which a token meets 12.9). The baseline of the same size is
experiments/pretrain/decoder.py.

    ablax train --config=experiments/pretrain/experts.py:tiny --workdir=runs/experts
    ablax inspect --config=experiments/pretrain/experts.py:8x7b --mesh=data:4,fsdp:8,expert:8

Records of training show whether the experts are used alike: `router_balance` (1 is even), `expert_load_0` and on,
`dropped_share`. Evaluation drops nothing.

`:tiny` shows that everything works: 40 steps on the built-in language reference end at 5.32 nats per token, 3.57 bits
per byte (Python 3.11.7), in 17 s of wall time on two CPU cores; the dense one ends at 5.29, for so short a run shows
no gain. `:small` (eight times GPT-2's networks: 520 million parameters, of which a token meets 180) and `:8x7b`
(Mixtral's) need accelerators and a corpus, one document per line of `corpus/*.jsonl.gz`; they have not been trained
here.
"""

from ablax.experiment import base

# size: (model, rows per batch, peak learning rate, context, vocabulary)
SIZES = {
    "tiny": ("decoder:tiny", 8, 1e-3, 64, 512),
    "small": ("decoder:small", 480, 6e-4, 1024, 50257),
    "8x7b": ("decoder:8x7b", 1024, 1.2e-4, 2048, 32000),
}


def get_config(size: str = "small"):
    model, batch_size, learning_rate, context, vocabulary = SIZES[size]
    config = base(model=model, optimizer="adamw:gpt3", tokenizer="bpe")
    config.name = f"experts-{size}"
    config.model.feedforward = {"kind": "experts", "capacity_factor": 1.25}
    config.data.tokenizer.vocab_size = vocabulary
    config.data.sequence_length = context
    config.model.dtype = "bfloat16"
    config.training.batch_size = batch_size
    config.training.steps = "300e9 tokens"
    config.optimizer.learning_rate = learning_rate
    config.schedule.warmup = "375e6 tokens"
    config.evaluation.every = 2000
    config.checkpoint.every = 2000
    if size == "tiny":
        config.data.source.name = "python_reference"
        config.model.dtype = "float32"
        config.training.steps = 40
        config.schedule.warmup = 4
        config.evaluation.every = 20
        config.checkpoint.every = 20
    else:
        config.data.source = {"kind": "jsonl", "glob": "corpus/*.jsonl.gz"}
    return config
