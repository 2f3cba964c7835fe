"""A run's model becomes a checkpoint that transformers loads."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ablax.config import RequestError, suggest
from ablax.interop.families import Family
from ablax.interop.fields import SILENT
from ablax.interop.importing import check_empty, made_beside
from ablax.interop.rules import scatter
from ablax.interop.table import FAMILIES
from ablax.interop.tokenizer_files import ids_of_marks, write_tokenizer
from ablax.interop.weights import SHARD_BYTES, write
from ablax.model import load
from ablax.models.positions import LearnedPositions, RotaryPositions
from ablax.models.transformer import TransformerConfig
from ablax.run import RunFolder
from ablax.training.manifest import leaves_of

LENGTHS = frozenset(["max_position_embeddings"])
"""A field that says how far a model was trained, where no table does."""
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def export_hf(
    workdir: str | Path,
    out: str | Path,
    *,
    step: int | str = "best",
    family: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    extend: Iterable[Any] = (),
    trust_unverified: bool = False,
) -> dict[str, Any]:
    """Writes config.json, safetensors and, of an imported tokenizer, its files.

    Args:
      out: the folder, which must not hold anything.
      step: `best`, `last` or a step that was kept.
      family: a key of `FAMILIES`; None = the one that it was imported as, else the first that fits.
      dtype: of the tensors; None = as they were imported, float32 of a model that was trained here.
      shard_bytes: of a file, at most.

    Returns:
      `out`, `family`, `dtype`, `files`.

    Raises:
      RequestError: if no family can say what the model computes, or the folder holds anything.
      RunFailed: if it cannot be written; nothing is left then.
    """
    out = Path(out).expanduser().absolute()
    check_empty(out)
    model = load(workdir, step, extend=extend, trust_unverified=trust_unverified)
    origin = RunFolder(workdir).status().get("imported") or {}
    length = model.config.data.sequence_length
    chosen, told = choose(sized(model.config.model, length), family or origin.get("family"))
    dtype = str(dtype or origin.get("dtype", "float32"))
    if dtype not in DTYPES:
        raise RequestError(f"dtype={dtype} is unknown{suggest(dtype, DTYPES)}")
    beside = {k: v for k, v in origin.get("config", {}).items() if k in SILENT | LENGTHS}
    if isinstance(model.config.model.positions, RotaryPositions):
        beside = dict.fromkeys(LENGTHS, length) | beside
    told = {**ids_of_marks(model.tokenizer), **beside, **told}
    told |= {"vocab_size": model.tokenizer.vocab_size, "torch_dtype": dtype}
    params = {path: np.asarray(leaf) for path, leaf in leaves_of(model.params).items()}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, tensor in scatter(chosen.weights, params, model.config.model.num_heads):
            yield name, tensor.astype(DTYPES[dtype])

    with made_beside(out) as made:
        files = write(made, tensors(), shard_bytes)
        (made / "config.json").write_text(json.dumps(told, indent=2) + "\n")
        files += ["config.json", *write_tokenizer(model.tokenizer, made, length)]
    return {"out": str(out), "family": chosen.name, "dtype": dtype, "files": sorted(files)}


def sized(model: Any, length: int) -> TransformerConfig:
    """The model with the length of its table of positions.

    Raises:
      RequestError: if it is no Transformer.
    """
    if not isinstance(model, TransformerConfig):
        raise RequestError(
            f"a {type(model).__name__} is no Transformer, and there is no checkpoint of transformers for it"
        )
    if isinstance(model.positions, LearnedPositions) and model.positions.length is None:
        positions = dataclasses.replace(model.positions, length=length)
        return dataclasses.replace(model, positions=positions)
    return model


def choose(model: TransformerConfig, name: str | None) -> tuple[Family, dict[str, Any]]:
    """The family that a model is written as, and its config.json.

    Raises:
      RequestError: if it is no family, or has no place for a knob of the model.
    """
    if name is not None and name not in FAMILIES:
        raise RequestError(f"--family={name} is unknown{suggest(name, FAMILIES)}")
    reasons = []
    for family in FAMILIES.values() if name is None else (FAMILIES[name],):
        try:
            return family, family.write(model)
        except RequestError as reason:
            reasons.append(f"{family.name}: {reason}")
    raise RequestError(f"the model fits no family of transformers ({'; '.join(reasons)})")
