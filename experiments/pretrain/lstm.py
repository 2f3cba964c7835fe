"""An LSTM language model: Zaremba's and Merity's.

Question: what does a recurrent network reach at word level? Zaremba et al. 2014, arXiv:1409.2329, section 4.1 (small
here = their medium: 2 x 650, dropout 0.5, 39 epochs; large: 2 x 1500); Merity et al. 2017, arXiv:1708.02182 (awd: 3 x
1150 with weight drop and variational dropout). They report test perplexities of 82.7, 78.4 and 57.3 on the Penn
Treebank, which is not free; point `data.source` at any text with a word per blank.

    ablax train --config=experiments/pretrain/lstm.py:tiny --workdir=runs/lstm
    ablax train --config=experiments/pretrain/lstm.py:small --config.data.source=text:wikitext-2/train.txt \\
        --config.data.split.rule=tail --workdir=runs/lstm-small

`:tiny` shows that everything works: 40 steps on the built-in language reference end at 7.58 nats per word (Python
3.11.7), in 5 s of wall time on two CPU cores. The other sizes have not been trained here.
"""

from ablax.experiment import base

SIZES = ("tiny", "small", "large", "awd")


def get_config(size: str = "small"):
    config = base(model=f"lstm:{size}", optimizer="sgd", schedule="constant", tokenizer="word")
    config.name = f"lstm-{size}"
    config.data.layout = "streams"
    config.data.sequence_length = 70 if size == "awd" else 35
    config.training.batch_size = 80 if size == "awd" else 20
    config.training.steps = "39 epochs"
    config.training.clip_norm = 5.0
    config.optimizer.learning_rate = 1.0
    config.evaluation.every = "1 epochs"
    config.checkpoint.every = "1 epochs"
    if size == "tiny":
        config.data.source.name = "python_reference"
        config.data.sequence_length = 32
        config.training.batch_size = 8
        config.training.steps = 40
        config.evaluation.every = 20
        config.checkpoint.every = 20
    return config
