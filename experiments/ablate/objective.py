"""Does a model learn more of a text by predicting what comes next, or by filling in what was hidden?

Question: what do next-token prediction (Radford et al. 2019) and masking (Devlin et al. 2019, arXiv:1810.04805; 15 %,
and 40 % as in Wettig et al. 2023, arXiv:2202.08005) teach the same Transformer at equal FLOPs? No ruler of text
probability serves both: a pseudo-log-likelihood (Salazar et al. 2020, arXiv:1910.14659) is no probability. So all
choose which closing bracket, ) ] or }, fits a place in held-out code, given all that stands around it: masked models
are asked for the place, the causal one for the likelihood of the window with each bracket (minimal pairs: Warstadt et
al. 2020, arXiv:1912.00582). Nothing is tuned for it, and each bracket is right equally often. The plan compares by it.

Further, and exploratory, linear probes (Alain and Bengio 2016, arXiv:1610.01644) of the frozen models' last states tell
where each token lies: in code, a bracket, a string or a comment. They are solved in closed form on training documents.
What precedes a token settles its label, so the causal model may know it; a masked one, shown everything, may also infer
it from what follows. Each must be held against `probe_untrained_accuracy`, the same of the model before training;
`probe_token_accuracy` and `probe_majority_accuracy`, which need no model; and `probe_control_accuracy`, what a probe
memorises (Hewitt and Liang 2019, arXiv:1909.03368).

    ablax sweep --config=experiments/ablate/objective.py --workdir=runs/objective
    ablax report --workdir=runs/objective
    ablax report --workdir=runs/objective --metric=probe_accuracy

Masked arms compute logits for their masks alone, so at equal FLOPs they train for more steps: the plan solves
`training.steps`. The two masked arms may also be compared by `--metric=pseudo_bits_per_byte`.

Expected (Python 3.11.7): the causal arm ends at 0.375 nats per bracket (guessing has 1.10), 40 % masked at 0.539 (worse
by 0.06 to 0.26, p 0.039 over both arms) and 15 % masked at 0.716, which three seeds do not show beyond doubt (p 0.066).
Probes find 0.80, 0.69 and 0.65 of the labels, an untrained model's 0.51 or 0.53, the token alone 0.53. All 9 cells took
14 minutes on two CPU cores that others used too. `:tiny` is a smoke test. The whole report:
docs/ablations/objective/report.md.
"""

from ablax.experiment import base
from ablax.sweeps.plan import Plan, chain, match, named, product, seeds

SIZES = ("cpu", "tiny")


def get_config(size: str = "cpu"):
    config = base(model="decoder:tiny", tokenizer="bpe", source="builtin:python_source")
    config.name = f"objective-{size}"
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
    config.evaluation.every = "50%"
    config.evaluation.documents = 16
    config.evaluation.pseudo_documents = 16
    config.evaluation.pseudo_every = 64
    config.evaluation.choices = 600
    config.evaluation.probe_documents = 16
    config.checkpoint.every = "50%"
    if size == "tiny":
        config.data.source.name = "python_reference"
        config.data.tokenizer.vocab_size = 300
        config.data.sequence_length = 64
        config.training.steps = 8
        config.training.batch_size = 4
        config.schedule.warmup = 2
        config.evaluation.documents = 4
        config.evaluation.pseudo_documents = 2
        config.evaluation.choices = 9
        config.evaluation.probe_documents = 4
        config.evaluation.probe_label = "brackets"
    return config


def get_sweep():
    # A decoder that sees both sides: the same block, and no head transform.
    body = {
        "model": "encoder:tiny",
        "model.num_layers": 2,
        "model.positions": "rotary",
        "model.init_scale": 2.0,
        "model.activation": "gelu_tanh",
        "model.norm_placement": "pre",
        "model.norm_epsilon": 1e-5,
        "model.embedding_norm": False,
        "model.head_transform": False,
        "model.head_bias": False,
        "model.scale_residual_init": True,
        "objective": "masked",
    }
    arms = chain(
        named("causal"),
        named("masked 15%", {**body, "objective.rate": 0.15}),
        named("masked 40%", {**body, "objective.rate": 0.4}),
    )
    return Plan(
        product(match(arms, "flops", "training.steps"), seeds(3)), metric="choice_nats_per_token"
    )
