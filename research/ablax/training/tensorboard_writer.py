"""The TensorBoard writer: event files in the run folder, without PyTorch."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablax.training.records import Record, scalars


class TensorBoardWriter:
    """TensorBoard scalars `split/name`; after a resume TensorBoard hides what came after the
    checkpoint.

    Args:
      folder: of the event files; each start adds one.
      done: updates done when the run starts or resumes.
    """

    def __init__(self, folder: Path, done: int):
        with unseen("torch"):
            from tensorboardX import SummaryWriter

        purge = done + 1 if folder.exists() else None
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def write(self, record: Record) -> None:
        """Adds the record's scalars."""
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flushes the file."""
        self._writer.close()


@contextlib.contextmanager
def unseen(name: str) -> Iterator[None]:
    """Lets an optional import of a module fail, unless somebody else has imported it already.

    tensorboardX imports PyTorch for a type test of its own whenever it is installed; that costs seconds and memory,
    and it has no switch and no submodule without it.
    """
    modules: dict[str, Any] = sys.modules
    hidden = name not in modules
    if hidden:
        modules[name] = None  # what Python reads as "cannot be imported"
    try:
        yield
    finally:
        if hidden:
            del modules[name]
