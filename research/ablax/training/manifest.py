"""What a checkpoint must hold: path, shape, dtype and a hash of every array, and hashes of its
JSON.
"""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ablax.config import RequestError
from ablax.training.masks import parameter_path

SHOWN = 4


class Damaged(Exception):
    """A checkpoint's content is not what was saved."""


def leaves_of(tree: Any) -> dict[str, Any]:
    """Path -> leaf."""
    return {parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def seal_of(content: Mapping[str, Any]) -> str:
    """Hash of JSON content, the same before writing and after reading."""
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
    """path -> [shape, dtype, hash of the values]; the hash of an array spread over processes is
    None.
    """

    def entry(leaf: Any) -> list[Any]:
        digest = None
        if getattr(leaf, "is_fully_addressable", True):
            digest = hashlib.sha256(np.ascontiguousarray(leaf).view(np.uint8).data).hexdigest()
        return [list(leaf.shape), str(leaf.dtype), digest]

    # hashlib releases the interpreter's lock for large buffers.
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(leaves, pool.map(entry, leaves.values()), strict=True))


def check_fits(template: Any, saved: Mapping[str, Sequence[Any]], where: str) -> None:
    """Raises RequestError with path and both shapes unless the template has exactly the saved
    leaves.
    """
    wanted = {
        path: (list(leaf.shape), str(leaf.dtype)) for path, leaf in leaves_of(template).items()
    }
    problems = list(_misfits(wanted, saved))
    if problems:
        more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        remedy = "use the configuration that it was saved with"
        shown = ", ".join(problems[:SHOWN])
        raise RequestError(f"{where} does not fit this run: {shown}{more}; {remedy}")


def _misfits(wanted: Mapping[str, tuple], saved: Mapping[str, Sequence[Any]]) -> Iterable[str]:
    for path in sorted(wanted.keys() | saved.keys()):
        ours = "{1}{0}".format(*wanted[path]) if path in wanted else "nothing"
        theirs = "{1}{0}".format(*saved[path][:2]) if path in saved else "nothing"
        if ours != theirs:
            yield f"{path} is {theirs} in the checkpoint and {ours} here"
