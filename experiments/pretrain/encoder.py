"""A masked Transformer: BERT's sizes.

Question: how well does a bidirectional encoder predict hidden tokens? Devlin et al. 2019, arXiv:1810.04805, section 3.1
and appendix A.2 (256 rows of 512 tokens, a million steps, Adam 1e-4 with linear decay; the next-sentence task is left
out, as in Liu et al. 2019, arXiv:1907.11692).

    ablax train --config=experiments/pretrain/encoder.py:tiny --workdir=runs/encoder
    ablax fill --workdir=runs/encoder --text="The [MASK] statement"

Metric: masked accuracy and pseudo-perplexity (Salazar et al. 2020). `:tiny` shows that everything works: 40 steps on
the built-in language reference end at 5.47 nats per masked token (Python 3.11.7), in 12 s of wall time on two CPU
cores, and fill masks with noise. `:small` (BERT-base) and `:large` need accelerators and a
corpus, one document per line of `corpus/*.jsonl.gz` (another place: --config.data.source=jsonl:GLOB); they have not
been trained here.
"""

from ablax.experiment import base

# size: preset of the model
SIZES = {"tiny": "tiny", "small": "base", "large": "large"}


def get_config(size: str = "small"):
    config = base(
        model=f"encoder:{SIZES[size]}",
        objective="masked",
        optimizer="adamw:bert",
        schedule="linear",
        tokenizer="wordpiece",
    )
    config.name = f"encoder-{size}"
    config.data.tokenizer.vocab_size = 30522
    config.data.sequence_length = 512
    config.data.layout = "packed"
    config.model.embedding_dropout = 0.1
    config.model.attention_dropout = 0.1
    config.model.residual_dropout = 0.1
    config.model.mlp_dropout = 0.1
    config.training.batch_size = 256
    config.training.steps = 1_000_000
    config.schedule.warmup = 10_000
    config.evaluation.every = 10_000
    config.checkpoint.every = 10_000
    if size == "tiny":
        config.data.source.name = "python_reference"
        config.data.tokenizer.vocab_size = 512
        config.data.sequence_length = 64
        config.optimizer.learning_rate = 1e-3
        config.training.batch_size = 8
        config.training.steps = 40
        config.schedule.warmup = 4
        config.evaluation.every = 20
        config.evaluation.documents = 8
        config.evaluation.pseudo_documents = 2
        config.checkpoint.every = 20
    else:
        config.data.source = {"kind": "jsonl", "glob": "corpus/*.jsonl.gz"}
    return config
