"""What a ledger tells: the hashes and documents of a run's batches, and where two runs part."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ablax.config import RequestError
from ablax.training.ledger import (
    DOCUMENTS,
    FOLDER,
    HASH_BYTES,
    HEADER,
    RECORD,
    parts_of,
    records_in,
)


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
    parts = parts_of(folder)
    if not parts:
        raise RequestError(f"{folder.parent} has no ledger; give the --workdir of a trained run")
    for path in parts:
        with path.open("rb") as file:
            if file.read(RECORD.itemsize) != HEADER:
                raise RequestError(f"{path} is not a ledger of this version of Ablax")
    found = list(_joined([records_in(path) for path in parts]))
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

    def __str__(self) -> str:
        if self.same:
            return f"the same {self.steps[0]} batches"
        if self.parts_at is not None and self.parts_at > min(self.steps):
            return f"the same first {min(self.steps)} batches; then only one goes on"
        return f"the batches part at step {self.parts_at}"


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
