"""The ledger: a hash and the documents of every global batch, so that two runs can prove that they saw the same data.

Each part of a batch's rows has a file, `ledger/PART.bin`, to which a process that reads it appends records of 32 bytes,
one for each step: 16 bytes of hash, uint32 rows that it covers, uint32 rows of the global batch, uint64 place of the
step's documents in `ledger/documents.bin` (written with part 0, of all rows). A step's hash is the sum over all files,
so it does not depend on their number.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ablax.data.loader import Loader

FOLDER, DOCUMENTS = "ledger", "documents.bin"
HASH_BYTES = 16
RECORD = np.dtype([("hash", "V16"), ("rows", "<u4"), ("batch_size", "<u4"), ("documents", "<u8")])
AT_ONCE = 64, 2**20
"""Steps, and bytes of their rows, that are recorded in one go: one after the other it takes four times as long, in
caches that a step has filled (docs/LOG.md)."""
HEADER = b"ablax ledger 1".ljust(RECORD.itemsize, b"\0")


def hash_rows(batch: Mapping[str, np.ndarray], first_row: int) -> int:
    """The sum, modulo 2^128, of one hash for each row, which depends on the row's place in the global batch.

    A sum, so that the parts of a batch can be hashed apart (Bellare and Micciancio 1997, AdHash).

    Args:
      batch: arrays [rows, ...].
      first_row: the place of their first row in the global batch.
    """
    names = sorted(batch)
    form = [(name, batch[name].dtype.str, batch[name].shape[1:]) for name in names]
    base = hashlib.blake2b(repr(form).encode(), digest_size=HASH_BYTES)
    columns = [np.ascontiguousarray(batch[name]) for name in names]
    rows = np.concatenate([c.reshape(len(c), -1).view(np.uint8) for c in columns], axis=1)
    total = 0
    for place, row in enumerate(rows, first_row):
        one = base.copy()
        one.update(place.to_bytes(8, "little"))
        one.update(row)
        total += int.from_bytes(one.digest(), "little")
    return total % 2 ** (8 * HASH_BYTES)


class Ledger:
    """Writes the records of the rows that this process reads. A disk that fails ends the ledger, not the run.

    Of processes that read the same rows, because their devices share them, one writes.

    Args:
      workdir: the run's folder.
      loader: tells rows and documents.
      batch_of: the loader's step, from 0, of a step of the run, from 1.
      say: takes one line of text.
    """

    def __init__(
        self,
        workdir: Path,
        loader: Loader,
        batch_of: Callable[[int], int],
        say: Callable[[str], None],
    ):
        self._loader, self._batch_of, self._say = loader, batch_of, say
        self._part = loader.first_row // loader.local_batch_size
        self._folder = workdir / FOLDER
        self._files, self._failed = contextlib.ExitStack(), False
        self._steps: int | None = None
        self._waiting: list[tuple[int, int, Mapping[str, np.ndarray]]] = []

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._files.close()

    def write(self, step: int, batch: Mapping[str, np.ndarray]) -> None:
        """Takes a step, from 1, that is recorded by the next `flush` at the latest; the batch must not be changed.

        What was recorded of it and of later ones, by a run that was killed, is dropped.
        """
        self._waiting.append((step, self._batch_of(step), batch))
        count, (steps, size) = len(self._waiting), AT_ONCE
        if count >= steps or count * sum(rows.nbytes for rows in batch.values()) >= size:
            self.flush()

    def flush(self) -> None:
        """Records what was taken; to be called before a checkpoint that a later run goes on from."""
        for step, position, batch in self._waiting:
            if not self._failed:
                self._record(step, position, batch)
        self._waiting.clear()

    def _record(self, step: int, position: int, batch: Mapping[str, np.ndarray]) -> None:
        try:
            if self._steps != step - 1:
                self._open(step - 1)
            number = hash_rows(batch, self._loader.first_row)
            sizes = len(next(iter(batch.values()))), self._loader.global_batch_size
            place = self._documents.tell() if self._documents else 0
            if self._documents:
                rows = self._loader.documents(position)
                _write(self._documents, pack(np.unique(np.concatenate(rows))))
            record = np.array((number.to_bytes(HASH_BYTES, "little"), *sizes, place), RECORD)
            _write(self._records, record.tobytes())
        except BlockingIOError:  # another process writes the records of these rows
            self._files.close()
            self._failed = True
        except OSError as error:
            self._failed = True
            self._say(f"the ledger in {self._folder} cannot be written ({error}): it ends here")
        else:
            self._steps = step

    def _open(self, steps: int) -> None:
        """Opens the files behind this many records. Missing ones become zeros, which cover no row."""
        self._files.close()
        self._folder.mkdir(exist_ok=True)
        path, documents = self._folder / f"{self._part}.bin", self._folder / DOCUMENTS
        self._records = self._opened(path)
        fcntl.flock(self._records, fcntl.LOCK_EX | fcntl.LOCK_NB)
        following = records_in(path)[steps : steps + 1]
        self._records.truncate(RECORD.itemsize * (1 + steps))
        self._records.write(HEADER)
        self._records.seek(0, os.SEEK_END)
        self._documents = None
        if self._part == 0:
            known = following["rows"].any()
            self._documents = self._opened(documents)
            if known:
                self._documents.truncate(int(following["documents"][0]))
            self._documents.seek(0, os.SEEK_END)
            count = self._loader.global_batch_size // self._loader.local_batch_size
            # Of processes that there were before; those that there are cut their own.
            for path in parts_of(self._folder):
                if int(path.stem) < count:
                    continue
                with path.open("r+b") as part:
                    part.truncate(min(path.stat().st_size, RECORD.itemsize * (1 + steps)))

    def _opened(self, path: Path) -> Any:
        path.touch()
        return self._files.enter_context(path.open("r+b", buffering=0))


def _write(file: Any, data: bytes) -> None:
    if file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def pack(numbers: np.ndarray) -> bytes:
    """How many, then the differences of rising numbers, each in as many 7-bit bytes as it needs (LEB128)."""
    out = bytearray()
    for value in (len(numbers), *np.diff(numbers, prepend=0).tolist()):
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


def parts_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.bin") if path.stem.isdigit())


def records_in(path: Path) -> np.ndarray:
    data = path.read_bytes() if path.is_file() else b""
    data = data[RECORD.itemsize : len(data) - len(data) % RECORD.itemsize]
    return np.frombuffer(data, RECORD)


def copy_ledger(parent: Path, child: Path, steps: int) -> None:
    """Gives a fork what its trunk saw in this many steps."""
    if not (parent / FOLDER).is_dir():
        return
    shutil.copytree(parent / FOLDER, child / FOLDER)
    following = records_in(child / FOLDER / "0.bin")[steps : steps + 1]
    if following["rows"].any():
        os.truncate(child / FOLDER / DOCUMENTS, int(following["documents"][0]))
    for path in parts_of(child / FOLDER):
        os.truncate(path, min(path.stat().st_size, RECORD.itemsize * (1 + steps)))
