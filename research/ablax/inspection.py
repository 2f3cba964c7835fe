"""What an experiment will be, without training it: one function per view.

Everything but `batches` is traced abstractly (`jax.eval_shape`), so the largest model costs seconds and no memory.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ablax.config import Duration, flatten, walk
from ablax.costs import flops, memory, micro_batch
from ablax.data.corpus import Corpus, open_corpus
from ablax.experiment import Experiment
from ablax.models.flops import active_parameters
from ablax.models.kernel_choice import FASTEST
from ablax.trainer import specials_of
from ablax.training import session
from ablax.training.canary import with_kernel, without_kernel
from ablax.training.masks import parameter_path
from ablax.training.sharding import RULES, Rules, partition
from ablax.training.step import Program


def settings(experiment: Experiment) -> dict[str, Any]:
    """Every knob by its dotted path, resolved."""
    return flatten(experiment)


def corpus_of(experiment: Experiment, offline: bool = False) -> Corpus:
    """Opens the data, tokenising it if that was not done before."""
    return open_corpus(experiment.data, specials_of(experiment), offline=offline)


def vocabulary_size(experiment: Experiment, corpus: Corpus | None = None) -> int:
    """V: of the opened corpus, else as the tokenizer's configuration states it (see `needs_data`)."""
    if corpus is not None:
        return corpus.tokenizer.vocab_size
    return experiment.data.tokenizer.vocab_size


def program_of(experiment: Experiment, vocab_size: int, per_epoch: float | None) -> Program:
    """The pure functions of an experiment whose model has `build`.

    Args:
      per_epoch: steps of an epoch, where a duration needs it.
    """
    training, length = experiment.training, experiment.data.sequence_length
    tokens = training.batch_size * length
    total = training.steps.steps(None, tokens, per_epoch)
    clock = session.Clock(total, tokens, per_epoch)  # type: ignore[arg-type]
    return session.build_program(experiment, vocab_size, clock)


def steps_per_epoch(experiment: Experiment, corpus: Corpus | None) -> float | None:
    """Steps that read as many rows as the training split has; None without data."""
    return corpus and session.training_loader(experiment, corpus).steps_per_epoch


def needs_data(experiment: Experiment) -> bool:
    """Whether only the opened data can tell a length of training or the size of the vocabulary."""
    lengths = [value for _, _, value, _ in walk(experiment) if isinstance(value, Duration)]
    stated = getattr(experiment.data.tokenizer, "vocab_size", None)
    epochs = any(length.unit == "epochs" for length in lengths)
    return epochs or not isinstance(stated, int)


def parameters(
    state: Any, sizes: Mapping[str, int] | None = None, rules: Rules = RULES
) -> dict[str, Any]:
    """Number of parameters, in total and by module; each one's shape, and its partition over a mesh of these sizes."""
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    table, by_module = {}, {}
    for path, leaf in leaves:
        name = parameter_path(path)
        table[name] = {
            "shape": list(leaf.shape),
            "partition": shown(partition(name, leaf.shape, sizes or {}, rules)),
        }
        head = name.split("/")[0]
        by_module[head] = by_module.get(head, 0) + math.prod(leaf.shape)
    return {"total": sum(by_module.values()), "by_module": by_module, "table": table}


def shown(spec: Any) -> str:
    """A partition as `parallel.rules` spells it: an axis per dimension, `-` for a whole one."""
    return ",".join(axis or "-" for axis in spec)


def durations(experiment: Experiment, per_epoch: float | None = None) -> dict[str, int]:
    """Every length of training in steps, by dotted path.

    Raises:
      RequestError: if one is given in epochs and `per_epoch` is None.
    """
    tokens = experiment.training.batch_size * experiment.data.sequence_length
    total = experiment.training.steps.steps(None, tokens, per_epoch)
    return {
        path: value.steps(total, tokens, per_epoch)
        for path, _, value, _ in walk(experiment)
        if isinstance(value, Duration)
    }


def layers(program: Program, state: Any) -> list[dict[str, Any]]:
    """Every submodule's output at the first step: path, shape (stacked over layers where they are), dtype, bytes."""
    batch = micro_batch(program)

    def forward(params, state, batch):
        rows = batch["tokens"].shape[0]
        carry = jax.tree.map(lambda leaf: leaf[:rows], state.carry)
        _, sown = program.module.apply(
            {"params": params},
            *(batch[name] for name in ("tokens", "positions", "segment_ids")),
            hyper=state.hyper.get("model", {}),
            carry=carry,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        return sown["intermediates"]

    shapes = jax.eval_shape(forward, state.params, state, batch)
    return [
        {
            "layer": _layer(path),
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "bytes": math.prod(leaf.shape) * leaf.dtype.itemsize,
        }
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    ]


def with_traceable_kernel(experiment: Experiment, platform: str | None) -> Experiment:
    """The experiment with the attention kernel that a run would use, as far as it is known and can be traced.

    Otherwise it has the reference, which keeps its probabilities, unlike cuDNN and splash: an upper estimate of memory.
    """
    if platform:
        experiment, _ = with_kernel(experiment, platform)
    # JAX traces those of GPUs only where there is one.
    if getattr(experiment.model, "attention_kernel", None) in ("auto", *FASTEST["gpu"]):
        return without_kernel(experiment)
    return experiment


def inspect(
    experiment: Experiment,
    corpus: Corpus | None = None,
    *,
    count: int = 0,
    shapes: bool = False,
    sizes: Mapping[str, int] | None = None,
    platform: str | None = None,
) -> dict[str, Any]:
    """All views of an experiment.

    Args:
      corpus: its opened data, needed for batches and where `needs_data` says so.
      count: how many batches to decode.
      shapes: whether to show every layer's output.
      sizes: devices along each axis of a mesh, whose devices need not exist: memory is then that of one of them.
      platform: of the devices, if it is known; see `with_traceable_kernel`.

    Returns:
      `config`, `durations`, `vocabulary`, `parameters` (`active`: those that a token meets), `flops`, `memory` (None
      with `why` for a model that is fitted to counts), `attention_kernel` that this memory assumes, of a model that has
      one, and, where asked for, `layers` and `batches`.
    """
    per_epoch = steps_per_epoch(experiment, corpus)
    found: dict[str, Any] = {"config": settings(experiment)}
    if hasattr(experiment.model, "fit"):
        why = f"{type(experiment.model).__name__} is fitted to counts, not trained by steps"
        found |= {"durations": {}, "parameters": None, "flops": None, "memory": None, "why": why}
    else:
        vocab_size = vocabulary_size(experiment, corpus)
        # Products inside a kernel cannot be counted; they are those of the reference.
        program = program_of(without_kernel(experiment), vocab_size, per_epoch)
        state = session.abstract_state(program, experiment)
        rules = experiment.parallel.table
        lean = with_traceable_kernel(experiment, platform)
        if sizes:
            session.check_layout(experiment, sizes)
        found |= {
            "durations": durations(experiment, per_epoch),
            "vocabulary": vocab_size,
            "parameters": {
                **parameters(state, sizes, rules),
                "active": active_parameters(experiment.model, state.params),
            },
            "flops": flops(program, state),
            "memory": memory(program_of(lean, vocab_size, per_epoch), state, sizes, rules),
        }
        if kernel := getattr(lean.model, "attention_kernel", None):
            found["attention_kernel"] = kernel
        if shapes:
            found["layers"] = layers(program, state)
    if corpus is not None and count:
        found["batches"] = batches(experiment, corpus, count)
    return found


def _layer(path: Any) -> str:
    """`blocks/mlp` of the key path of a sown output; the model's own is called `model`."""
    names = [str(key.key) for key in path if hasattr(key, "key")]
    return "/".join(name for name in names if name != "__call__") or "model"


@dataclasses.dataclass(frozen=True)
class Token:
    """One position of a batch.

    Attributes:
      text: the token; `target` its target.
      weight: of its loss; 0 = not counted.
      segment: 0 = padding.
    """

    text: str
    target: str
    weight: float
    segment: int


def batches(experiment: Experiment, corpus: Corpus, count: int) -> list[list[list[Token]]]:
    """The first batches that training will see: steps, rows, positions."""
    loader = session.training_loader(experiment, corpus)
    return [_decoded(loader.batch(step), corpus) for step in range(count)]


def _decoded(batch: Mapping[str, np.ndarray], corpus: Corpus) -> list[list[Token]]:
    text = corpus.tokenizer.token_text
    names = ("tokens", "targets", "loss_weights", "segment_ids")
    rows = zip(*(batch[name] for name in names), strict=True)
    return [
        [
            Token(text(int(token)), text(int(target)), float(weight), int(segment))
            for token, target, weight, segment in zip(*row, strict=True)
        ]
        for row in rows
    ]
