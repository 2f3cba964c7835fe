"""Safetensors files of a folder, one or several with an index."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

from ablax.config import RequestError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
FLOATS = ("F64", "F32", "F16", "BF16")
CONVERT = (
    "python -c \"from transformers import {auto} as M; M.from_pretrained('{source}')"
    ".save_pretrained('{out}')\""
)
"""What turns a pickle into safetensors, in an environment where its author is trusted."""


class Tensors:
    """The tensors in a folder. Nothing is unpickled.

    Args:
      auto: the class of transformers that would open the checkpoint, for advice.

    Raises:
      RequestError: if it has no safetensors, or a file is damaged or missing.
    """

    def __init__(self, folder: Path, auto: str = "AutoModelForCausalLM"):
        self.folder = folder
        self._files: dict[str, Path] = {}
        for file in _files_of(folder, auto):
            with self._open(file) as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    self._files[name] = file
        if (folder / INDEX).is_file():
            self._check_index()

    def _check_index(self) -> None:
        said = _index(self.folder)
        for name in sorted(said.keys() | self._files.keys()):
            here = self._files[name].name if name in self._files else None
            if said.get(name) != here:
                raise RequestError(
                    f"{self.folder / INDEX} says that {name} is in {said.get(name)}, and it is in {here}; "
                    "get the checkpoint again"
                )

    def names(self) -> Iterable[str]:
        """The names of all tensors."""
        return self._files.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        with self._open(self._files[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def dtype(self) -> str:
        """The dtype of most tensors, as `float32`, `float16` or `bfloat16`."""
        counted: dict[str, int] = {}
        for file in sorted(set(self._files.values())):
            with self._open(file) as opened:
                for name in opened.keys():  # noqa: SIM118
                    kind = opened.get_slice(name).get_dtype()
                    counted[kind] = counted.get(kind, 0) + 1
        most = max(counted, key=lambda kind: counted[kind], default="F32")
        return {"BF16": "bfloat16", "F16": "float16"}.get(most, "float32")

    def read(self, name: str) -> np.ndarray:
        """A tensor.

        Raises:
          RequestError: if it is not of floats.
        """
        with self._open(self._files[name]) as file:
            kind = file.get_slice(name).get_dtype()
            if kind not in FLOATS:
                raise RequestError(
                    f"{self._files[name]}: {name} is {kind}, and weights must be floats ({', '.join(FLOATS)}); "
                    "get a checkpoint that is not quantised"
                )
            return file.get_tensor(name)

    @contextlib.contextmanager
    def _open(self, file: Path) -> Iterator[safetensors.safe_open]:
        try:
            opened = safetensors.safe_open(file, "np")
        except (safetensors.SafetensorError, OSError) as error:
            raise RequestError(
                f"{file} is damaged or cut short ({error}); get the checkpoint again"
            ) from error
        with opened as reader:
            yield reader


def _index(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / INDEX).read_text())["weight_map"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RequestError(
            f"{folder / INDEX} cannot be read ({error!r}); get the checkpoint again"
        ) from error


def _files_of(folder: Path, auto: str) -> list[Path]:
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_index(folder).values()))]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(p.name for p in folder.glob("pytorch_model*"))
    if pickles:
        raise RequestError(
            f"{folder} has {pickles[0]} and no {SINGLE}: it is a pickle, which runs code of whoever made it, and is "
            f"not read; convert it where you trust it: {CONVERT.format(auto=auto, source=folder, out='CONVERTED')}"
        )
    raise RequestError(f"{folder} has no {SINGLE} and no {INDEX}; is it a checkpoint?")


def write(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> list[str]:
    """Writes tensors into one file, or into several of at most `shard_bytes` with an index.

    Returns:
      The files' names.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    room = shard_bytes
    for name, tensor in tensors:
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = np.ascontiguousarray(tensor)
        room -= tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE, {"format": "pt"})
        return [SINGLE]
    count = len(shards)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{count:05}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return sorted(set(places.values()))
