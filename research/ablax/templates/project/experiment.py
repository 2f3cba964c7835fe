"""Does sigmoid attention match softmax attention at equal steps?

    ablax train --config=experiment.py --workdir=runs/sigmoid
    ablax sweep --config=experiment.py --workdir=runs/ablation
    ablax report --workdir=runs/ablation

A small model on built-in text: a minute or two on a laptop's CPU.
"""

from sigmoid_attention import SigmoidAttention

from ablax.experiment import base
from ablax.sweeps.plan import chain, named, product, seeds

OURS = f"{SigmoidAttention.__module__}:{SigmoidAttention.__name__}"


def get_config(size="small"):
    config = base(model="decoder:tiny", source="builtin:python_reference")
    config.model.attention = OURS
    config.training.steps = {"small": 200, "tiny": 20}[size]
    config.training.batch_size = 8
    config.data.sequence_length = 128
    return config


def get_sweep():
    arms = chain(
        named("softmax", {"model.attention.kind": "dot_product"}),
        named("sigmoid", {"model.attention.kind": OURS}),
    )
    return product(arms, seeds(3))
