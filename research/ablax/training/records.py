"""metrics.jsonl: one JSON object a line, and the cursor that lets a resumed run continue it
exactly.
"""

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]


class Records:
    """Appends records to a file; a killed process loses none that `write` returned for.

    Args:
      path: the file; made if it is not there.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115

    def write(self, record: Record) -> None:
        """Appends one line. Numbers that JSON does not have become the texts nan, inf and -inf.

        Raises:
          OSError: if the line did not fit on the disk; none of it is left then.
        """
        content = {key: plain(value) for key, value in record.items()}
        line = json.dumps(content, allow_nan=False).encode() + b"\n"
        before = self._size()
        if self._file.write(line) != len(line):
            self._file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def cursor(self) -> int:
        """Bytes of the file now, safe on disk: what a checkpoint of this moment has to keep."""
        # A checkpoint is worth more than its metrics: save it although they could not be synced.
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        return self._size()

    def truncate(self, cursor: int) -> int:
        """Drops what was written after `cursor`, half a line of a killed process included.

        Returns:
          How many bytes are missing before the cursor: 0 unless somebody shortened the file.
        """
        size = self._size()
        whole = self.path.read_bytes().rfind(b"\n") + 1 if size < cursor else cursor
        self._file.truncate(whole)
        return max(cursor - size, 0)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays of one element become numbers; nan and infinities, text."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def scalars(record: Record) -> dict[str, float]:
    """`split/name` -> number, for every number in the record but the step."""
    values = {
        name: value.item() if hasattr(value, "item") else value for name, value in record.items()
    }
    return {
        f"{record['split']}/{name}": value
        for name, value in values.items()
        if name != "step" and isinstance(value, (int, float))
    }
