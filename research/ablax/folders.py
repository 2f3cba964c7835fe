"""What can be done with run folders beside training: evaluate, fork, prepare data."""

import os
import pathlib
import shutil
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ablax import config as configuration
from ablax.config import RequestError
from ablax.data.corpus import open_corpus
from ablax.data.progress import Progress
from ablax.experiment import resolve
from ablax.model import load
from ablax.models.ngram import Ngram
from ablax.run import RunFailed, RunFolder, now, write_json
from ablax.trainer import specials_of
from ablax.training.checkpoints import Checkpoints
from ablax.training.evaluators import Evaluator, check_evaluation
from ablax.training.ledger import copy_ledger
from ablax.training.manifest import Damaged
from ablax.training.thinned import has_only_parameters

FIXED = {
    "data.tokenizer.": "the parent's parameters belong to its tokens",
    "init.": "it goes on from its parent's state",
}
"""Knobs that a fork has from its parent, and why."""


def evaluate(
    workdir: str | pathlib.Path,
    split: str | None = None,
    step: int | str = "best",
    *,
    overrides: Mapping[str, Any] | None = None,
    extend: Iterable[Any] = (),
    trust_unverified: bool = False,
    offline: bool = False,
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run on one of its splits; totals and per-document sums go to its `evals/`.

    They lie there as SPLIT-STEP, and those of overrides as, say, SPLIT-STEP,stride=32.

    Args:
      split: `validation`, `test`, `train`; the run's `evaluation.split` when None.
      step: `best`, `last` or a step that was kept.
      overrides: of the `evaluation` knobs, such as `{"evaluation.stride": 32}`.
      trust_unverified: see `load`.

    Returns:
      The record.

    Raises:
      RequestError: if there is no such run, split or step.
    """
    extend = list(extend)
    model = load(workdir, step, extend=extend, trust_unverified=trust_unverified)
    experiment = resolve(model.config, overrides, extend=extend, imports=False)
    changed = configuration.differences(model.config, experiment)
    if other := [path for path in changed if not path.startswith("evaluation.")]:
        raise RequestError(f"{other[0]} cannot be changed in an evaluation; only evaluation.* can")
    corpus = open_corpus(
        experiment.data, specials_of(experiment), tokenizer=model.tokenizer, offline=offline
    )
    folder = RunFolder(workdir)
    # What training measured, and a report reads, is not replaced by numbers of another rule.
    rules = configuration.differences(model.config, experiment, "result")
    label = "".join(
        f",{path.rpartition('.')[2]}={new}"
        for path, (_, new) in rules.items()
        if path != "evaluation.split"
    )
    evaluator = Evaluator(
        experiment.evaluation, corpus, experiment.objective, folder.evals, split, label
    )
    if isinstance(model.module, Ngram):
        return evaluator.fitted(model.module)
    check_evaluation(experiment, corpus, model.module)
    return evaluator.neural(model.module, model.params, model.hyper, model.step)


def prepare(
    config: Any,
    *,
    extend: Iterable[Any] = (),
    offline: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Downloads, tokenises and verifies what a configuration needs, without a device.

    Args:
      progress: called with (what, done, total) documents, such as `ablax.data.progress.told(print)`.

    Returns:
      Per split: documents, tokens, bytes, whether it is lossless, fingerprint; and the tokenizer's.
    """
    experiment = resolve(config, extend=extend)
    corpus = open_corpus(
        experiment.data, specials_of(experiment), offline=offline, progress=progress
    )
    splits = {
        name: {
            "documents": len(store),
            "tokens": int(store.offsets[-1]),
            "bytes": int(store.byte_counts.sum()),
            "lossless": store.lossless,
            "fingerprint": store.fingerprint,
            "skipped": len(corpus.sources[name].skipped),
        }
        for name, store in corpus.stores.items()
    }
    tokenizer = {
        "vocab_size": corpus.tokenizer.vocab_size,
        "fingerprint": corpus.tokenizer.fingerprint,
    }
    return {"splits": splits, "tokenizer": tokenizer}


def fork(
    source: str | pathlib.Path,
    workdir: str | pathlib.Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    extend: Iterable[Any] = (),
    config: Any = None,
) -> dict[str, Any]:
    """Starts a run from another's checkpoint, keeping data position, random numbers and optimizer state.

    Args:
      source: `RUN` or `RUN@STEP`.
      workdir: the new run's folder, which must not hold anything.
      overrides: knobs that differ.
      config: the new run's whole configuration, which the overrides change in place of its parent's.

    Returns:
      `workdir`, `parent`, `step`, `changed`.

    Raises:
      RequestError: if there is no such run or step, the folder holds anything, or the tokenizer would change.
      RunFailed: if the files cannot be copied; nothing is left then.
    """
    path, at, step_text = str(source).rpartition("@")
    if not at:
        path, step_text = str(source), ""
    parent, child = RunFolder(path).require(), RunFolder(workdir)
    if child.path.exists() and (not child.path.is_dir() or any(child.path.iterdir())):
        raise RequestError(f"{child.path} exists and is not empty; choose another --workdir")
    extend = list(extend)
    old = resolve(parent.config(), extend=extend, imports=False)
    new = resolve(old if config is None else config, overrides, extend=extend)
    if hasattr(old.model, "fit"):
        raise RequestError(
            f"{parent.path} is a fitted {type(old.model).__name__} and has no steps; train a new one"
        )
    steps = sorted(int(p.name) for p in parent.checkpoints.glob("*") if p.name.isdigit())
    if step_text and not step_text.isdigit():
        raise RequestError(f"{source}: the step behind @ must be a number; kept steps are {steps}")
    step = int(step_text) if step_text else (steps[-1] if steps else None)
    if step is None or step not in steps:
        raise RequestError(
            f"{parent.path} has no checkpoint of step {step_text or 'any'}; kept steps are {steps}"
        )
    check_whole(parent, step)
    if has_only_parameters(parent.checkpoints / str(step)):
        raise RequestError(
            f"checkpoint {step} of {parent.path} holds only parameters (checkpoint.at_end=parameters), and a fork goes "
            f"on from a whole state; start a new run from them with --config.init.run={parent.path}@{step}"
        )
    changed = configuration.differences(old, new)
    check_changes(changed)
    status = parent.status()
    sources = configuration.extension_sources(new)
    origin = {
        "workdir": str(parent.path),
        "step": step,
        "fingerprint": status["fingerprint"],
        "changed": changed,
    }
    entries = {
        "name": new.name,
        "status": "forked",
        "step": step,
        "forked": now(),
        "parent": origin,
        "fingerprint": configuration.fingerprint(new),
        "data": status["data"] if new.data == old.data else None,
        "extension_code": {name: configuration.digest(text) for name, text in sources.items()},
    }
    # Made under another name: a fork that was cut short would look like a run that has a checkpoint.
    made = RunFolder(child.path.with_name(f".{child.path.name}.{os.getpid()}"))
    try:
        shutil.copytree(parent.tokenizer, made.tokenizer)
        shutil.copytree(parent.checkpoints / str(step), made.checkpoints / str(step))
        copy_ledger(parent.path, made.path, step)
        if parent.metrics_file.is_file():  # of the trunk; cut at the step when the run starts
            shutil.copy(parent.metrics_file, made.metrics_file)
        with Checkpoints(made.checkpoints, writer=False) as checkpoints:
            origin["seconds"] = checkpoints.saved(step).cursor().get("seconds", 0.0)
        write_json(made.path / "run.json", entries)
        write_json(made.path / "config.json", configuration.to_dict(new))
        made.path.rename(child.path)
    except OSError as error:
        raise RunFailed(
            f"step {step} of {parent.path} could not be copied to {child.path} ({error}); try again, "
            "or another step if the parent dropped this one"
        ) from error
    finally:
        shutil.rmtree(made.path, ignore_errors=True)
    return {
        "workdir": str(child.path),
        "parent": str(parent.path),
        "step": step,
        "changed": changed,
    }


def check_changes(changed: Collection[str]) -> None:
    """Refuses a fork in which a knob differs that must be its parent's.

    Args:
      changed: dotted paths.

    Raises:
      RequestError: naming the first.
    """
    for prefix, why in FIXED.items():
        if kept := [path for path in changed if path.startswith(prefix)]:
            raise RequestError(f"{kept[0]} cannot change in a fork: {why}; train a new run")


def check_whole(parent: RunFolder, step: int) -> None:
    """Refuses to start from a damaged checkpoint.

    Raises:
      RequestError: naming what is damaged, and the newest step that is good.
    """
    with Checkpoints(parent.checkpoints, writer=False) as checkpoints:
        try:
            checkpoints.saved(step).arrays()
        except Damaged as damage:
            good = checkpoints.newest_good(s for s in checkpoints.all_steps() if s != step)
            remedy = "none of it is good" if good is None else f"fork {parent.path}@{good}"
            raise RequestError(
                f"checkpoint {step} of {parent.path} is damaged ({damage}); {remedy}"
            ) from None
