"""A pretrained model becomes a run folder, as if it had been trained here and kept its parameters only."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ablax import config as configuration
from ablax.config import RequestError
from ablax.data.imported_tokenizers import FileConfig
from ablax.experiment import Experiment, base, resolve
from ablax.interop.families import Family, family_of
from ablax.interop.fields import lost
from ablax.interop.hub import Source, locate
from ablax.interop.page import PAGE, page_text
from ablax.interop.rules import gather
from ablax.interop.table import FAMILIES
from ablax.interop.tokenizer_files import read_tokenizer
from ablax.interop.weights import Tensors
from ablax.models.flops import abstract_params
from ablax.models.positions import LearnedPositions
from ablax.run import RunFailed, RunFolder, now, provenance, write_json
from ablax.training.checkpoints import Checkpoints
from ablax.training.disk import SaveError
from ablax.training.manifest import leaves_of
from ablax.training.masks import parameter_path
from ablax.training.thinned import evaluated_only

ROW = 2048
"""Tokens of a row where nothing else limits them: models that turn heads are made for far longer texts than fit."""


def import_hf(
    source: str,
    workdir: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Makes a run folder of a checkpoint.

    Args:
      source: a folder, or a name on the hub.
      workdir: the run's folder, which must not hold anything.
      overrides: knobs of the run, such as `{"data.source": "text:mine.txt"}`; none that changes the model.
      revision: of the hub's repository; the commit that it means is recorded.
      tokenizer: a file or folder; the checkpoint's own when None.
      say: takes a line of text.

    Returns:
      `workdir`, `family`, `revision`, `parameters`, `dropped`: tensors that were not used, and why.

    Raises:
      RequestError: if there is no such checkpoint, it is not known completely, or the folder holds anything.
      RunFailed: if it cannot be written; nothing is left then.
    """
    folder = RunFolder(workdir)
    check_empty(folder.path)
    found = locate(source, revision)
    told = read_config(found.folder)
    family = family_of(told, FAMILIES)
    model = family.read(told)
    vocabulary = read_tokenizer(
        found.folder if tokenizer is None else Path(tokenizer).expanduser(), told["vocab_size"]
    )
    plain = experiment_of(family, model, told, vocabulary, folder)
    experiment = resolve(plain, overrides)
    check_overrides(plain, experiment)
    length = experiment.data.sequence_length
    shapes = abstract_params(experiment.model, vocabulary.vocab_size, length)
    tensors = Tensors(found.folder, family.auto)
    flat = {path: leaf.shape for path, leaf in leaves_of(shapes).items()}
    params, dropped = gather(family.weights, tensors, flat, model.num_heads)
    kept = {"config": told, "dtype": tensors.dtype(), "dropped": dropped}
    entries = entries_of(experiment, found, family, vocabulary, kept)
    entries["parameters"] = sum(array.size for array in params.values())
    with made_beside(folder.path, RunFolder) as made:
        vocabulary.save(made.tokenizer)
        tree = jax.tree_util.tree_map_with_path(
            lambda path, _: jnp.asarray(params[parameter_path(path)]), shapes
        )
        settings = configuration.to_dict(experiment)
        with Checkpoints(made.checkpoints, asynchronous=False, say=say) as checkpoints:
            checkpoints.save(0, evaluated_only(tree), {"seconds": 0.0}, settings)
        write_json(made.path / "run.json", entries)
        (made.path / PAGE).write_text(page_text(folder.path, source))
        write_json(made.path / "config.json", settings)
    return {
        "workdir": str(folder.path),
        "family": family.name,
        "revision": found.revision,
        "parameters": entries["parameters"],
        "dropped": dropped,
    }


def check_empty(path: Path) -> None:
    """Refuses a folder that holds anything.

    Raises:
      RequestError: if it does.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RequestError(f"{path} exists and is not empty; choose another folder")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint.

    Raises:
      RequestError: if there is none, or it cannot be read.
    """
    try:
        told = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder / 'config.json'} cannot be read: {error}") from None
    if not isinstance(told, dict) or "vocab_size" not in told:
        raise RequestError(f"{folder / 'config.json'} has no vocab_size; is it a model's?")
    return told


def experiment_of(
    family: Family, model: Any, told: Mapping[str, Any], vocabulary: Any, folder: RunFolder
) -> Experiment:
    """The experiment of a run of this model: its tokenizer, rows as long as its table of positions, or `ROW`.

    Args:
      told: config.json.
    """
    limit = model.positions.length if isinstance(model.positions, LearnedPositions) else None
    length = limit or min(told.get("max_position_embeddings", ROW), ROW)
    kind = "causal" if model.CAUSAL else "masked"
    chosen = resolve(base(objective=kind, model="decoder" if model.CAUSAL else "encoder"))
    specials = vocabulary.specials
    marked = specials.bos is not None and specials.eos is not None
    data = dataclasses.replace(
        chosen.data,
        tokenizer=FileConfig(str(folder.tokenizer)),
        sequence_length=length,
        document_marks=marked,
    )
    return dataclasses.replace(chosen, name=family.name, model=model, data=data)


def check_overrides(plain: Experiment, experiment: Experiment) -> None:
    """Refuses knobs that would make another model of a checkpoint.

    Raises:
      RequestError: naming the first.
    """
    same = type(experiment.model) is type(plain.model)
    changed = lost(experiment.model, plain.model) if same else ["model.kind"]
    kinds = (type(plain.objective), plain.data.tokenizer)
    if kinds != (type(experiment.objective), experiment.data.tokenizer):
        changed.append("objective.kind or data.tokenizer")
    if changed:
        raise RequestError(
            f"{changed[0]} is given by the checkpoint and cannot be changed; train a run that starts from it"
        )


def entries_of(
    experiment: Experiment, source: Source, family: Family, vocabulary: Any, kept: dict[str, Any]
) -> dict[str, Any]:
    """run.json of an imported run.

    Args:
      kept: what else is known of the checkpoint.
    """
    return {
        "name": experiment.name,
        "status": "finished",
        "error": None,
        "step": 0,
        "seconds": 0.0,
        "ended": now(),
        "fingerprint": configuration.fingerprint(experiment),
        "data": {"tokenizer": vocabulary.fingerprint},
        "extension_code": {},
        "starts": [provenance()],
        "parent": None,
        "imported": {
            "source": source.name,
            "folder": str(source.folder),
            "revision": source.revision,
            "family": family.name,
            **kept,
        },
    }


@contextlib.contextmanager
def made_beside(path: Path, kind: Callable[[Path], Any] = Path) -> Iterator[Any]:
    """A folder under another name that gets its own when it is complete; half of one is never seen.

    Raises:
      RunFailed: if it cannot be written.
    """
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        made.mkdir(parents=True)
        yield kind(made)
        if path.is_dir():
            path.rmdir()
        made.rename(path)
    except (OSError, SaveError) as error:
        raise RunFailed(
            f"{path} could not be written ({error}); make room and try again"
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
