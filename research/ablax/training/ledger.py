"""The ledger: a hash and the documents of every global batch, so that two runs can prove that they saw the same data.

Each part of a batch's rows has a file, `ledger/PART.bin`, to which a process that reads it appends records of 32 bytes,
one for each step: 16 bytes of hash, uint32 rows that it covers, uint32 rows of the global batch, uint64 place of the
step's documents in `ledger/documents.bin` (written with part 0, of all rows). A step's hash is the sum over all files,
so it does not depend on their number.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ablax.config import RequestError
from ablax.data.loader import Loader

FOLDER, DOCUMENTS = "ledger", "documents.bin"
HASH_BYTES = 16
RECORD = np.dtype([("hash", "V16"), ("rows", "<u4"), ("batch_size", "<u4"), ("documents", "<u8")])
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

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def write(self, step: int, batch: Mapping[str, np.ndarray]) -> None:
        """Records a step, from 1; what was recorded of it and of later ones, by a run that was killed, is dropped."""
        if self._failed:
            return
        try:
            if self._steps != step - 1:
                self._open(step - 1)
            number = hash_rows(batch, self._loader.first_row)
            sizes = len(next(iter(batch.values()))), self._loader.global_batch_size
            place = self._documents.tell() if self._documents else 0
            if self._documents:
                rows = self._loader.documents(self._batch_of(step))
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
        following = _records(path)[steps : steps + 1]
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
            for path in _parts(self._folder):
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


def unpack(data: bytes) -> list[int]:
    """The inverse of `pack`; what follows is not read."""
    values: list[int] = []
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values.append(value)
            value = shift = 0
            if len(values) == values[0] + 1:
                return np.cumsum(values[1:]).tolist()
    raise ValueError("the documents are cut short")


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.bin") if path.stem.isdigit())


def _records(path: Path) -> np.ndarray:
    data = path.read_bytes() if path.is_file() else b""
    data = data[RECORD.itemsize : len(data) - len(data) % RECORD.itemsize]
    return np.frombuffer(data, RECORD)


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
    """What a ledger tells.

    Attributes:
      folder: where it lies.
      hashes: of the global batches of steps 1, 2, ...; 16 bytes each.
    """

    folder: Path
    hashes: Sequence[bytes]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.hashes)

    def digest(self) -> str:
        """One hash of all of them, in hexadecimal."""
        return hashlib.blake2b(b"".join(self.hashes), digest_size=HASH_BYTES).hexdigest()

    def documents(self, step: int) -> list[int]:
        """The documents of a step, from 1: their numbers in the training split's token store, rising.

        Raises:
          RequestError: if the step is not recorded.
        """
        if not 1 <= step <= len(self):
            raise RequestError(f"step {step} is not in {self.folder}, which has 1 to {len(self)}")
        with (self.folder / DOCUMENTS).open("rb") as file:
            file.seek(self.places[step - 1])
            end = self.places[step] if step < len(self) else None
            return unpack(file.read() if end is None else file.read(end - self.places[step - 1]))


def read_ledger(workdir: Path | str) -> Recorded:
    """The ledger of a run, up to the first step of which not every row is recorded.

    Raises:
      RequestError: if there is none, or it is of another format.
    """
    folder = Path(workdir).expanduser() / FOLDER
    parts = _parts(folder)
    if not parts:
        raise RequestError(f"{folder.parent} has no ledger; give the --workdir of a trained run")
    for path in parts:
        with path.open("rb") as file:
            if file.read(RECORD.itemsize) != HEADER:
                raise RequestError(f"{path} is not a ledger of this version of Ablax")
    found = list(_joined([_records(path) for path in parts]))
    return Recorded(folder, [one for one, _ in found], [place for _, place in found])


def _joined(parts: Sequence[np.ndarray]) -> Iterator[tuple[bytes, int]]:
    for step in range(max(map(len, parts))):
        found = [part[step] for part in parts if step < len(part)]
        rows = sum(int(record["rows"]) for record in found)
        if not rows or rows != int(found[0]["batch_size"]):
            return
        total = sum(int.from_bytes(record["hash"].tobytes(), "little") for record in found)
        total %= 2 ** (8 * HASH_BYTES)
        yield total.to_bytes(HASH_BYTES, "little"), int(found[0]["documents"])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Whether two runs saw the same batches.

    Attributes:
      same: in every step, and equally many.
      steps: how many steps each recorded.
      parts_at: the first step in which they differ, or that only one has; None if they are the same.
      digests: one hash of all batches for each.
    """

    same: bool
    steps: tuple[int, int]
    parts_at: int | None
    digests: tuple[str, str]


def compare_ledgers(one: Path | str, other: Path | str) -> Comparison:
    """Compares the batches of two runs.

    Raises:
      RequestError: if one has no ledger.
    """
    runs = read_ledger(one), read_ledger(other)
    pairs = zip(runs[0].hashes, runs[1].hashes, strict=False)
    apart = next((step for step, (a, b) in enumerate(pairs, 1) if a != b), None)
    steps = len(runs[0]), len(runs[1])
    if apart is None and steps[0] != steps[1]:
        apart = min(steps) + 1
    return Comparison(apart is None, steps, apart, (runs[0].digest(), runs[1].digest()))


def copy_ledger(parent: Path, child: Path, steps: int) -> None:
    """Gives a fork what its trunk saw in this many steps."""
    if not (parent / FOLDER).is_dir():
        return
    shutil.copytree(parent / FOLDER, child / FOLDER)
    following = _records(child / FOLDER / "0.bin")[steps : steps + 1]
    if following["rows"].any():
        os.truncate(child / FOLDER / DOCUMENTS, int(following["documents"][0]))
    for path in _parts(child / FOLDER):
        os.truncate(path, min(path.stat().st_size, RECORD.itemsize * (1 + steps)))
