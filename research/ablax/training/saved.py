"""One checkpoint on disk, and the only way to its weights: nothing is given out that is not what was saved."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ablax.config import RequestError
from ablax.training.manifest import (
    Damaged,
    cause,
    check_fits,
    check_item,
    check_leaves,
    leaves_of,
    opened,
)
from ablax.training.masks import parameter_path
from ablax.training.thinned import is_thinned

ITEMS = ("cursor", "config", "scores")
# What is wrong with the machine, not with the files.
MACHINE_ERRORS = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


@dataclasses.dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint in a folder of checkpoints.

    Attributes:
      folder: of all checkpoints.
      step: number of updates behind it.
      unverified: whether it may be read if its manifest is missing; `say` is told.
      say: takes one line of text.
    """

    folder: Path
    step: int
    unverified: bool = False
    say: Callable[[str], None] = print

    def __str__(self) -> str:
        return f"checkpoint {self.step} in {self.folder}"

    def state(self, template: Any, thinned: Any = None) -> tuple[Any, dict[str, Any]]:
        """The whole state and the metrics cursor.

        Args:
          template: pytree of arrays or ShapeDtypeStructs: structure, shapes, dtypes and shardings
            of the result.
          thinned: the template if the checkpoint is thinned; None: it is refused then.

        Raises:
          RequestError: if the template has other leaves, shapes or dtypes.
          Damaged: if anything is not what was saved.
        """
        manifest = self._manifest()
        leaves = manifest["leaves"] if manifest else self._shapes()
        if is_thinned(leaves):
            if thinned is None:
                raise RequestError(
                    f"{self} holds only parameters (checkpoint.at_end=parameters): evaluate it, generate, or start a "
                    "new run from it with init.run"
                )
            template = thinned
        check_fits(template, leaves, str(self))
        cursor, *_ = [self._item(name, manifest) for name in ITEMS]
        with (
            self._reading("state") as path,
            ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader,
        ):
            abstract = jax.tree.map(_abstract, template)
            state = reader.restore(path, args=ocp.args.StandardRestore(abstract))  # type: ignore[call-arg]
        if manifest:
            check_leaves(manifest, leaves_of(state), path)
        return state, cursor

    def arrays(self, wanted: Callable[[str], bool] = lambda path: True) -> dict[str, np.ndarray]:
        """Path -> array in host memory, for those whose paths are wanted.

        Raises:
          Damaged: if they, or the JSON beside them, are not what was saved.
        """
        manifest = self._manifest()
        for name in ITEMS:
            self._item(name, manifest)
        handler = ocp.PyTreeCheckpointHandler()
        with self._reading("state") as path, ocp.Checkpointer(handler) as reader:
            saved = _tree(handler, path)
            chosen = jax.tree_util.tree_map_with_path(
                lambda key, leaf: leaf if wanted(parameter_path(key)) else ocp.PLACEHOLDER, saved
            )
            on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
            how = ocp.args.PyTreeRestore(item=chosen, restore_args=on_host)  # type: ignore[call-arg]
            read = leaves_of(reader.restore(path, args=how))
        found = {path: leaf for path, leaf in read.items() if leaf is not ocp.PLACEHOLDER}
        if manifest:
            if lost := [p for p in manifest["leaves"] if wanted(p) and p not in found]:
                raise Damaged(f"{self.step}/state: {lost[0]} is missing")
            check_leaves(manifest, found, path)
        return found

    def shapes(self) -> Mapping[str, Any]:
        """Path -> [shape, dtype, ...] of every array.

        Raises:
          Damaged: if nobody knows.
        """
        manifest = self._manifest()
        return manifest["leaves"] if manifest else self._shapes()

    def config(self) -> dict[str, Any]:
        """The resolved configuration that it was saved with.

        Raises:
          Damaged: if it is not what was saved.
        """
        return self._item("config", self._manifest())

    def cursor(self) -> dict[str, Any]:
        """How far the run was: metrics that were written, seconds.

        Raises:
          Damaged: if it is not what was saved.
        """
        return self._item("cursor", self._manifest())

    def scores(self) -> dict[str, float]:
        """What was measured when it was saved.

        Raises:
          Damaged: if it is not what was saved.
        """
        return self._item("scores", self._manifest())

    def _manifest(self) -> dict[str, Any] | None:
        """What it must hold; None where nobody knows and that was asked for."""
        if (self.folder / str(self.step) / "manifest" / "metadata").is_file():
            return opened(self._read("manifest"), self.step)
        if not self.unverified:
            raise Damaged(
                f"{self.step}/manifest is missing, and nothing else tells whether the rest is "
                "whole; evaluate, generate and fill read it nevertheless with --trust_unverified"
            )
        self.say(f"{self} has no manifest: what is read is NOT VERIFIED")
        return None

    def _shapes(self) -> dict[str, Any]:
        """What Orbax itself noted of the arrays."""
        handler = ocp.PyTreeCheckpointHandler()
        with self._reading("state") as path, ocp.Checkpointer(handler):
            leaves = leaves_of(_tree(handler, path))
        return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves.items()}

    def _item(self, name: str, manifest: Mapping[str, Any] | None) -> dict[str, Any]:
        content = self._read(name)
        if manifest:
            check_item(manifest, name, content)
        return content

    def _read(self, item: str) -> dict[str, Any]:
        with self._reading(item) as path, ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(path, args=ocp.args.JsonRestore())

    @contextlib.contextmanager
    def _reading(self, item: str) -> Iterator[Path]:
        """The folder of an item; whatever its reader raises is damage, unless it is the machine's fault."""
        path = self.folder / str(self.step) / item
        try:
            yield path
        except MACHINE_ERRORS:
            raise
        except Exception as error:
            raise Damaged(cause(error, path)) from error


def _tree(handler: Any, path: Path) -> Any:
    """What Orbax noted of the arrays. A checkpointer, asked itself, warns that this is no whole step."""
    return handler.metadata(path).tree


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
