"""The files that an array of a checkpoint lies in, so that its damage is said with their names."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import tensorstore


def files_of(item: Path, array: str) -> Sequence[Path]:
    """Where the index of TensorStore's database says that an array lies; the item itself where the index is damaged.

    Args:
      item: the folder of a checkpoint's arrays.
      array: path of one.
    """
    prefix = array.replace("/", ".").encode() + b"/"
    found = set()
    with contextlib.suppress(Exception):  # whatever a damaged index makes of its reader
        store = tensorstore.KvStore.open(f"file://{item}/").result()
        root = tensorstore.ocdbt.dump(store).result()["versions"][-1]["root"]["location"]
        for entry in tensorstore.ocdbt.dump(store, root).result()["entries"]:
            if entry["key"].startswith(prefix) and not entry["key"].endswith(b".zarray"):
                # Small values lie in the node of the index itself.
                found.add(_file_of(item, entry.get("indirect_value", root)))
    return sorted(found) or [item]


def _file_of(item: Path, location: str) -> Path:
    """The file of a location, "kind:folder:file:offset:length"."""
    _, *parts, _, _ = location.split(":")
    return item.joinpath(*parts)
