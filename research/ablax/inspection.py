"""What an experiment will be, without training it: one function per view.

Everything but `batches` is traced abstractly (`jax.eval_shape`), so the largest model costs seconds and no memory.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ablax.config import Duration, flatten, walk
from ablax.data.corpus import Corpus, open_corpus
from ablax.experiment import Experiment
from ablax.trainer import specials_of
from ablax.training import session
from ablax.training.masks import parameter_path
from ablax.training.parallel import spec_of
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


def needs_data(experiment: Experiment) -> bool:
    """Whether only the opened data can tell a length of training or the size of the vocabulary."""
    lengths = [value for _, _, value, _ in walk(experiment) if isinstance(value, Duration)]
    stated = getattr(experiment.data.tokenizer, "vocab_size", None)
    epochs = any(length.unit == "epochs" for length in lengths)
    return epochs or not isinstance(stated, int)


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def parameters(program: Program, state: Any) -> dict[str, Any]:
    """Number of parameters, in total and by module; each one's shape and partition."""
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    table, by_module = {}, {}
    for path, leaf in leaves:
        name = parameter_path(path)
        table[name] = {"shape": list(leaf.shape), "partition": str(spec_of(name))}
        head = name.split("/")[0]
        by_module[head] = by_module.get(head, 0) + math.prod(leaf.shape)
    return {"total": sum(by_module.values()), "by_module": by_module, "table": table}


def _micro(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch that is on the devices at once: a micro-batch."""
    parts = program.config.accumulation
    return {
        name: jax.ShapeDtypeStruct((spec.shape[0] // parts, *spec.shape[1:]), spec.dtype)
        for name, spec in program.spec.items()
    }


def _loss(program: Program, params: Any, state: Any, batch: Any) -> Any:
    key = jax.random.wrap_key_data(state.rng, impl="threefry2x32")
    rows = batch["tokens"].shape[0]
    carry = jax.tree.map(lambda leaf: leaf[:rows], state.carry)
    apply = program.forward(params, state.hyper, carry, key)
    return program.objective.loss(apply, batch, state.hyper.get("objective", {}))[0].total


def flops(program: Program, state: Any) -> dict[str, float]:
    """Floating-point operations of all matrix products per token; a multiplication and an addition are two.

    Returns:
      `forward_per_token`; `training_per_token` of the loss and its gradient as they are executed, recomputation
      included.
    """
    batch = _micro(program)
    tokens = math.prod(batch["tokens"].shape)

    def loss(params, state, batch):
        return _loss(program, params, state, batch)

    forward = jax.make_jaxpr(loss)(state.params, state, batch)
    training = jax.make_jaxpr(jax.grad(loss))(state.params, state, batch)
    return {
        "forward_per_token": product_flops(forward.jaxpr) / tokens,
        "training_per_token": product_flops(training.jaxpr) / tokens,
    }


def product_flops(jaxpr: Any) -> float:
    """Operations of the matrix products of a jaxpr; a scan's body counts once per turn, of branches the largest."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
            continue
        inside = [product_flops(inner) for inner in _inner(equation.params)]
        if equation.primitive.name == "cond":
            total += max(inside, default=0.0)
        else:
            total += sum(inside) * equation.params.get("length", 1)
    return total


def _inner(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def memory(program: Program, state: Any) -> dict[str, int]:
    """Bytes that training needs on one device that holds everything: what is kept, and what the gradient remembers.

    `activations` are the residuals of the backward pass before the compiler fuses or drops any: an upper estimate.
    """
    batch = _micro(program)

    def residuals(params, state, batch):
        _, pull = jax.vjp(lambda p: _loss(program, p, state, batch), params)
        known = {id(leaf) for leaf in jax.tree.leaves((params, state, batch))}
        return [leaf for leaf in jax.tree.leaves(pull) if id(leaf) not in known]

    kept = {
        "parameters": _bytes(state.params),
        "optimizer": _bytes(state.opt_state),
        "average": _bytes(state.ema),
        "gradients": _bytes(state.params) * (2 if program.config.accumulation > 1 else 1),
        "activations": _bytes(jax.eval_shape(residuals, state.params, state, batch)),
        "batch": _bytes(batch),
    }
    return {**kept, "total": sum(kept.values())}


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
    batch = _micro(program)

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


def inspect(
    experiment: Experiment, corpus: Corpus | None = None, *, count: int = 0, shapes: bool = False
) -> dict[str, Any]:
    """All views of an experiment.

    Args:
      corpus: its opened data, needed for batches and where `needs_data` says so.
      count: how many batches to decode.
      shapes: whether to show every layer's output.

    Returns:
      `config`, `durations`, `vocabulary`, `parameters`, `flops`, `memory` (None with `why` for a model that is fitted
      to counts), and, where asked for, `layers` and `batches`.
    """
    per_epoch = None
    if corpus is not None:
        per_epoch = session.training_loader(experiment, corpus).steps_per_epoch
    found: dict[str, Any] = {"config": settings(experiment)}
    if hasattr(experiment.model, "fit"):
        why = f"{type(experiment.model).__name__} is fitted to counts, not trained by steps"
        found |= {"durations": {}, "parameters": None, "flops": None, "memory": None, "why": why}
    else:
        vocab_size = vocabulary_size(experiment, corpus)
        program = program_of(experiment, vocab_size, per_epoch)
        state = session.abstract_state(program, experiment)
        found |= {
            "durations": durations(experiment, per_epoch),
            "vocabulary": vocab_size,
            "parameters": parameters(program, state),
            "flops": flops(program, state),
            "memory": memory(program, state),
        }
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
