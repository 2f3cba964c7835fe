"""The kernel canary: the attention that a run uses is compared with the reference before it trains anything."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ablax import placement
from ablax.config import RequestError
from ablax.data.corpus import Corpus
from ablax.models.kernel_choice import Choice, choose, task_of
from ablax.models.kernels import REFERENCE, kernel_of
from ablax.models.transformer import TransformerConfig
from ablax.objectives.batch import Batch, vocabulary_of
from ablax.run import RunFolder
from ablax.training.manifest import leaves_of
from ablax.training.state import TrainState
from ablax.training.step import Program

ROWS = 2
# Of a gradient's norm. A kernel adds in another order: roundings of the dtype, which softmax and later layers enlarge.
FLOOR = {"float32": 1e-4, "bfloat16": 1e-2}
# Two different orders of adding differ by about as much as each from the truth.
SLACK = 4.0
# A gradient this much smaller than that of all parameters together is noise (that of a key's bias is 0 in theory).
NEGLIGIBLE = 1e-3

Rows = Mapping[str, np.ndarray]


def with_kernel(experiment: Any, platform: str) -> tuple[Any, Choice | None]:
    """The experiment with the attention kernel that `auto` means on a platform, and why; None if it has no attention.

    Raises:
      RequestError: if the kernel that was asked for cannot serve the experiment.
    """
    model = experiment.model
    if not isinstance(model, TransformerConfig):
        return experiment, None
    split = experiment.parallel.sequence != 1
    task = task_of(model, platform, experiment.data.layout != "packed", split)
    choice = choose(model.attention_kernel, model.attention, task)
    model = dataclasses.replace(model, attention_kernel=choice.name)
    return dataclasses.replace(experiment, model=model), choice


def without_kernel(experiment: Any) -> Any:
    """The experiment with the reference in place of a kernel: right on any device, for a model that is loaded."""
    if not isinstance(experiment.model, TransformerConfig):
        return experiment
    model = dataclasses.replace(experiment.model, attention_kernel=REFERENCE)
    return dataclasses.replace(experiment, model=model)


def first_rows(experiment: Any, corpus: Corpus) -> Rows:
    """The first rows of the first batch, the same in every process."""
    vocabulary = vocabulary_of(corpus.tokenizer)
    return corpus.loader(
        ROWS,
        experiment.seed,
        lambda row, rng: experiment.objective.transform(row, rng, vocabulary),
    ).batch(0)


def canary_rows(batch: Rows, whole_rows: bool) -> dict[str, np.ndarray]:
    """Two rows of a batch: the one of most kinds of tokens, and the same with padding behind it and, unless
    `whole_rows`, two segments.
    """
    length = batch["tokens"].shape[1]
    # Among tokens that are all alike it does not show who attends to whom: the rule of a table, padding.
    kinds = [
        len(np.unique(tokens[weights > 0]))
        for tokens, weights in zip(batch["tokens"], batch["loss_weights"], strict=True)
    ]
    rows = {name: np.repeat(x[[np.argmax(kinds)]], ROWS, axis=0) for name, x in batch.items()}
    end = length - max(1, length // 8)
    cut = 0 if whole_rows else end // 2
    rows["segment_ids"][1] = np.where(np.arange(length) < end, 1, 0)
    rows["segment_ids"][1, cut:end] += cut > 0
    rows["positions"][1] = np.arange(length) - np.where(np.arange(length) < cut, 0, cut)
    rows["loss_weights"] = np.where(rows["segment_ids"] != 0, rows["loss_weights"], 0)
    return rows


def check_attention(
    work: Any, kernel: Choice, folder: RunFolder, state: TrainState, say: Callable[[str], None]
) -> None:
    """Records and says how the attention of a run is computed, and compares a kernel with the reference.

    Args:
      work: the run's `Descent`.

    Raises:
      RequestError: if they differ.
    """
    folder.update(attention_kernel={"name": kernel.name, "why": kernel.why})
    if kernel.name != REFERENCE or jax.devices()[0].platform != "cpu":
        say(f"attention: {kernel.name} ({kernel.why})")
    if kernel.name != REFERENCE:
        rows = first_rows(work.experiment, work.corpus)
        check_kernel(work.program, state.params, state.hyper, rows, work.engine.over)


def check_kernel(
    program: Program,
    params: Any,
    hyper: Mapping[str, Any],
    batch: Rows,
    over: Callable[[], AbstractContextManager] = nullcontext,
) -> None:
    """Compares loss and gradients of the program's attention kernel with those of the reference on a few rows.

    Both are measured against the reference in float32 at the highest precision, so that what is allowed follows from
    what the reference itself loses in the run's dtype on this device.

    Args:
      params: of the run, wherever they lie.
      hyper: its traced knobs.
      batch: its first rows.
      over: of its engine, whose devices take part as they do in training.

    Raises:
      RequestError: naming the kernel, the parameter and the difference, or what kept the kernel from running.
    """
    config = program.module.config
    kernel = kernel_of(config, True)
    if kernel is None:
        return
    name, dtype = config.attention_kernel, config.dtype
    remedy = "set model.attention_kernel=reference"
    rows = canary_rows(batch, kernel.whole_rows)
    with jax.default_matmul_precision("highest"):
        truth = gradients_by(program, REFERENCE, "float32", over)(params, hyper, rows)
    reference = gradients_by(program, REFERENCE, dtype, over)(params, hyper, rows)
    try:
        found = gradients_by(program, name, dtype, over)(params, hyper, rows)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise RequestError(
            f"model.attention_kernel={name} does not run here: {reason}; {remedy}"
        ) from error
    sizes, lost, off = (_distances(truth, x) for x in (None, reference, found))
    total = np.sqrt(sum(size**2 for path, size in sizes.items() if path != "loss"))
    for path, size in sizes.items():
        size = max(size, NEGLIGIBLE * total)
        allowed = SLACK * lost[path] / size + FLOOR[dtype]
        if not off[path] / size <= allowed:
            what = "the loss" if path == "loss" else f"the gradient of {path}"
            raise RequestError(
                f"model.attention_kernel={name} does not compute the reference on this device: {what} is off by "
                f"{off[path] / size:.1e} of its size, where {dtype} allows {allowed:.1e}; {remedy}"
            )


def gradients_by(
    program: Program, kernel: str, dtype: str, over: Callable[[], AbstractContextManager]
) -> Any:
    """A compiled function of (params, hyper, rows): loss per counted position, and its gradient by path."""
    # One layer is compiled instead of L.
    changes = {"attention_kernel": kernel, "dtype": dtype, "unroll": 1}
    config = dataclasses.replace(program.module.config, **changes)
    twin = dataclasses.replace(program, module=program.module.clone(config=config))

    def mean(params: Any, hyper: Mapping[str, Any], rows: Batch) -> jax.Array:
        loss = twin.loss(params, hyper, (), jax.random.key(0), rows)[0]
        return loss.total / jnp.maximum(loss.count, 1)

    @jax.jit
    def found(params: Any, hyper: Mapping[str, Any], rows: Rows) -> dict[str, jax.Array]:
        with over():
            # Each device that has rows of its own gets all kinds of them, or its kernel would be tested on some only.
            whole = {name: jnp.tile(x, (placement.parts("B"), 1)) for name, x in rows.items()}
            loss, gradient = jax.value_and_grad(mean)(params, hyper, whole)
        return {"loss": loss, **leaves_of(gradient)}

    return found


def _distances(leaves: Mapping[str, Any], others: Mapping[str, Any] | None) -> dict[str, float]:
    """Norm of the difference by path; of the leaf itself without others. Only these numbers leave the devices."""

    @jax.jit
    def norms(a: Any, b: Any) -> Any:
        return jax.tree.map(lambda x, y: jnp.linalg.norm(jnp.ravel(x - y)), a, b)

    nothing = {path: jnp.zeros((), leaf.dtype) for path, leaf in leaves.items()}
    found = norms(leaves, nothing if others is None else others)
    return {path: float(norm) for path, norm in found.items()}
