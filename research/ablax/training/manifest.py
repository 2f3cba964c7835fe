"""What a checkpoint must hold: path, shape, dtype and a hash of every array, and hashes of its
JSON. Every difference is damage, and is said with the file or the array that it is in.
"""

import concurrent.futures
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ablax.config import RequestError
from ablax.run import write_json
from ablax.training.chunks import files_of
from ablax.training.masks import parameter_path

SHOWN = 4
# Files of an item whose loss its reader does not name.
ESSENTIAL = {"state": ("_METADATA", "manifest.ocdbt")}


class Damaged(Exception):
    """A checkpoint's content is not what was saved."""


def leaves_of(tree: Any) -> dict[str, Any]:
    """Path -> leaf."""
    return {parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def seal_of(content: Mapping[str, Any]) -> str:
    """Hash of JSON content, the same before writing and after reading."""
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def on_this_host(leaf: Any) -> Any:
    """The whole of an array. One that processes hold parts of is gathered, which all of them must ask for at once."""
    if getattr(leaf, "is_fully_addressable", True):
        return leaf
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    return multihost_utils.process_allgather(leaf, tiled=True)


def digest(leaf: Any) -> str:
    """Hash of an array's values, whatever the devices and processes that they lie on."""
    return hashlib.sha256(np.ascontiguousarray(leaf).view(np.uint8).data).hexdigest()


def describe(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
    """path -> [shape, dtype, hash of the values] (see `digest`)."""

    def entry(leaf: Any) -> list[Any]:
        return [list(leaf.shape), str(leaf.dtype), digest(leaf)]

    # One after the other and never in the pool: all processes have to gather the same array at the same time.
    parted = {p: entry(on_this_host(leaves[p])) for p in leaves if _is_parted(leaves[p])}
    whole = {path: on_this_host(leaf) for path, leaf in leaves.items() if path not in parted}
    # hashlib releases the interpreter's lock for large buffers.
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = dict(zip(whole, pool.map(entry, whole.values()), strict=True)) | parted
    return {path: found[path] for path in leaves}


def _is_parted(leaf: Any) -> bool:
    return not (getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated)


def manifest_of(
    step: int, leaves: Mapping[str, Any], items: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Args:
      leaves: path -> array.
      items: name -> JSON that is saved beside the arrays.
    """
    seals = {name: seal_of(content) for name, content in items.items()}
    content = {"step": step, "leaves": describe(leaves), "items": seals}
    return {**content, "seal": seal_of(content)}


def opened(manifest: Mapping[str, Any], step: int) -> dict[str, Any]:
    """A manifest's content, if it is what was saved, and at this step.

    Raises:
      Damaged: if it is not.
    """
    content = {name: value for name, value in manifest.items() if name != "seal"}
    if manifest.get("seal") != seal_of(content):
        raise Damaged(f"{step}/manifest is not what was saved")
    if content.keys() != {"step", "leaves", "items"}:
        raise Damaged(f"{step}/manifest was written by another version of Ablax")
    if content["step"] != step:
        raise Damaged(f"{step}/manifest belongs to step {content['step']}")
    return content


def check_item(manifest: Mapping[str, Any], name: str, content: Mapping[str, Any]) -> None:
    """Raises Damaged unless a piece of JSON is what was saved."""
    if manifest["items"].get(name) != seal_of(content):
        raise Damaged(f"{manifest['step']}/{name} is not what was saved")


def check_leaves(manifest: Mapping[str, Any], leaves: Mapping[str, Any], item: Path) -> None:
    """Raises Damaged, naming the arrays and their files, unless each of them is what was saved.

    Args:
      item: the folder that they were read from.
    """
    found = describe(leaves)
    bad = [path for path, entry in found.items() if entry != manifest["leaves"].get(path)]
    if bad:
        more = f" and {len(bad) - SHOWN} more arrays" if len(bad) > SHOWN else ""
        shown, root = bad[:SHOWN], item.parent.parent
        files = dict.fromkeys(str(f.relative_to(root)) for p in shown for f in files_of(item, p))
        raise Damaged(f"{', '.join(files)}: {', '.join(shown)}{more}: not what was saved")


def cause(error: BaseException, item: Path) -> str:
    """One line about what a reader stumbled over: the file, if that is known, and the reason.

    Args:
      item: folder of a checkpoint's item.
    """
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    # Orbax wraps what TensorStore says in text that hides it.
    told = next((e for e in chain if re.match(r"[A-Z_]+: ", str(e))), error)
    text = str(told).split(" [tensorstore_spec")[0].strip().split("\n")[0] or type(told).__name__
    named = [Path(name) for name in re.findall(re.escape(str(item)) + r"/[\w./-]*\w", text)]
    if array := re.search(r'"([^"/]+)/[^"]*" in OCDBT database', text):
        named = [*named, *files_of(item, array[1])]
    lost = [item / name for name in ESSENTIAL.get(item.name, ()) if not (item / name).is_file()]
    file = (*lost, *named[::-1], item)[0]
    missing = "" if file.exists() else " is missing"
    root = item.parent.parent
    return f"{file.relative_to(root)}{missing}: {text.replace(f'{root}/', '')[:240]}"


def check_fits(
    template: Any,
    saved: Mapping[str, Sequence[Any]],
    where: str,
    remedy: str = "use the configuration that it was saved with",
) -> None:
    """Raises RequestError with path and both shapes unless the template has exactly the saved
    leaves.
    """
    wanted = {
        path: (list(leaf.shape), str(leaf.dtype)) for path, leaf in leaves_of(template).items()
    }
    problems = list(_misfits(wanted, saved))
    if problems:
        more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        shown = ", ".join(problems[:SHOWN])
        raise RequestError(f"{where} does not fit this run: {shown}{more}; {remedy}")


def _misfits(wanted: Mapping[str, tuple], saved: Mapping[str, Sequence[Any]]) -> Iterable[str]:
    for path in sorted(wanted.keys() | saved.keys()):
        ours = "{1}{0}".format(*wanted[path]) if path in wanted else "nothing"
        theirs = "{1}{0}".format(*saved[path][:2]) if path in saved else "nothing"
        if ours != theirs:
            yield f"{path} is {theirs} in the checkpoint and {ours} here"


def seal_file(path: Path) -> None:
    """Writes the hash of a file's content beside it."""
    write_json(_seal_beside(path), {path.name: _hash_of(path)})


def check_file(path: Path, unverified: bool, say: Callable[[str], None]) -> None:
    """Compares a file with the hash that `seal_file` wrote.

    Args:
      unverified: whether a file without one will do; `say` is told.

    Raises:
      RequestError: if it is not what was saved, or nobody knows.
    """
    seal = _seal_beside(path)
    if not seal.is_file():
        if not unverified:
            raise RequestError(
                f"{seal} is missing, and nothing else tells whether {path.name} is whole; "
                "train again, or read it nevertheless with --trust_unverified"
            )
        say(f"{path} has no manifest: what is read is NOT VERIFIED")
        return
    try:
        same = json.loads(seal.read_text())[path.name] == _hash_of(path)
    except (OSError, ValueError, LookupError, TypeError):
        same = False
    if not same:
        raise RequestError(f"{path} is damaged: it is not what was saved; train again with --fresh")


def _seal_beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-manifest.json")


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
