"""Text and JSON-lines files, plain or gzip, as sources."""

import dataclasses
import glob as globbing
import gzip
import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from ablax.config import RequestError, knob
from ablax.data.documents import Source

HELD_BYTES = 256 * 2**20
"""Files are kept in memory up to this total; documents of later ones are read when asked for."""

Buffer = bytes | mmap.mmap
Spans = Iterator[tuple[int, int, int]]
"""Start and stop in bytes, and the number from 1 of the line on which the document starts."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Text files in UTF-8, plain or gzip. Line ends inside a document are kept exactly; the ones
    that separate documents belong to none."""

    ARGUMENT: ClassVar[str] = "glob"

    glob: str = knob("", "files, e.g. `corpus/**/*.txt`; read in the order of their paths")
    validation_glob: str | None = knob(None, "validation files, for split.rule=given")
    test_glob: str | None = knob(None, "test files, for split.rule=given")
    document: Literal["file", "paragraph", "line"] = knob(
        "file", "what is one document; paragraphs are separated by blank lines"
    )
    blank: Literal["drop", "keep"] = knob(
        "drop", "what happens to files and lines that hold only white space"
    )
    on_error: Literal["stop", "skip"] = knob(
        "stop", "at a file or document that is binary, truncated or not UTF-8: stop or skip it"
    )

    def build(self, cache: Path, offline: bool) -> dict[str, Source]:
        """Opens the files of each split that has a glob.

        Raises:
          RequestError: no file matches, a file cannot be read, or there is no document.
        """
        return _build_splits(
            "text", self, lambda data: text_spans(data, self.document, self.blank), _as_text
        )


@dataclasses.dataclass(frozen=True)
class JsonlConfig:
    """Files with one JSON object a line, plain or gzip; a document is one field of the object."""

    ARGUMENT: ClassVar[str] = "glob"

    glob: str = knob("", "files, e.g. `corpus/*.jsonl.gz`; read in the order of their paths")
    validation_glob: str | None = knob(None, "validation files, for split.rule=given")
    test_glob: str | None = knob(None, "test files, for split.rule=given")
    field: str = knob("text", "the field that holds the document")
    id_field: str | None = knob(None, "the field that names the document; file:line without it")
    on_error: Literal["stop", "skip"] = knob(
        "stop", "at a line that is broken or lacks the field, or a file cut short: stop or skip it"
    )

    def build(self, cache: Path, offline: bool) -> dict[str, Source]:
        """Opens the files of each split that has a glob.

        Raises:
          RequestError: no file matches, a file or line cannot be read, or there is no document.
        """
        fields = (self.field,) if self.id_field is None else (self.field, self.id_field)

        def parse(data: bytes) -> tuple[str, str | None]:
            values = _fields(_as_text(data)[0], fields)
            return values[0], values[1] if self.id_field else None

        return _build_splits("jsonl", self, lambda data: text_spans(data, "line", "drop"), parse)


def _build_splits(
    kind: str,
    config: TextConfig | JsonlConfig,
    spans: Callable[[Buffer], Spans],
    parse: Callable[[bytes], tuple[str, str | None]],
) -> dict[str, Source]:
    globs = {"train": config.glob, "validation": config.validation_glob, "test": config.test_glob}
    skip = config.on_error == "skip"
    return {
        split: FileSource(_match(kind, pattern), spans, parse, skip)
        for split, pattern in globs.items()
        if pattern is not None
    }


def _match(kind: str, pattern: str) -> list[str]:
    if not pattern:
        raise RequestError(f"source {kind}: no files named; give them as `{kind}:GLOB`")
    expanded = os.path.expanduser(pattern)
    matches = [expanded] if os.path.exists(expanded) else globbing.glob(expanded, recursive=True)
    paths = sorted(path for path in matches if os.path.isfile(path))
    if not paths:
        where = "" if os.path.isabs(expanded) else f" (relative to {os.getcwd()})"
        raise RequestError(
            f"source {kind}: no file matches {pattern!r}{where}; check the path, "
            "and quote the pattern so that the shell does not expand it"
        )
    return paths


class FileSource(Source):
    """Documents as byte ranges of files; every one is checked when the source is opened.

    Args:
      paths: the files, in order.
      spans: the byte ranges of a file's documents.
      parse: a document's bytes to its text and, if it carries one, its name. Raises ValueError
        (UnicodeDecodeError with the position) when it cannot.
      skip: leave out what cannot be read, and list it in `skipped`, instead of raising.

    Raises:
      RequestError: something cannot be read and `skip` is not set, or no document is left.
    """

    def __init__(
        self,
        paths: list[str],
        spans: Callable[[Buffer], Spans],
        parse: Callable[[bytes], tuple[str, str | None]],
        skip: bool,
    ):
        self._paths = paths
        self._root = os.path.commonpath([os.path.dirname(os.path.abspath(p)) for p in paths])
        self._parse = parse
        self._skip = skip
        self._held: dict[int, bytes] = {}
        self.skipped: list[tuple[str, str]] = []
        rows: list[tuple[int, int, int, int]] = []
        held_bytes = 0
        for number, path in enumerate(paths):
            try:
                data = _open(path)
                _refuse_binary(data)
            except (OSError, EOFError, zlib.error, ValueError) as error:
                self._refuse(path, self._relative(number), _reason(error))
                continue
            rows.extend((number, *span) for span in self._checked(number, data, spans(data)))
            if isinstance(data, bytes) or held_bytes + len(data) <= HELD_BYTES:
                self._held[number] = data[:]
                held_bytes += len(data)
        if not rows:
            skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
            raise RequestError(
                f"source: no documents in {len(paths)} files under {self._root}{skipped}; "
                "the corpus must hold text"
            )
        self._rows = np.array(rows, np.int64)

    def _checked(self, number: int, data: Buffer, spans: Spans) -> Spans:
        for start, stop, line in spans:
            try:
                self._parse(data[start:stop])
            except UnicodeDecodeError as error:
                where = f"invalid UTF-8 at byte {start + error.start}"
                self._refuse(self._paths[number], f"{self._relative(number)}:{line}", where)
            except ValueError as error:
                self._refuse(
                    f"{self._paths[number]}:{line}", f"{self._relative(number)}:{line}", str(error)
                )
            else:
                yield start, stop, line

    def _refuse(self, place: str, name: str, reason: str) -> None:
        if not self._skip:
            raise RequestError(f"{place}: {reason}; repair it or set on_error=skip")
        self.skipped.append((name, reason))

    def _relative(self, number: int) -> str:
        return Path(os.path.relpath(self._paths[number], self._root)).as_posix()

    def _document(self, index: int) -> tuple[str, str | None]:
        number, start, stop, _ = self._rows[index].tolist()
        if number in self._held:
            return self._parse(self._held[number][start:stop])
        with open(self._paths[number], "rb") as file:
            file.seek(start)
            return self._parse(file.read(stop - start))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:
        return self._document(index)[0]

    def name(self, index: int) -> str:
        """The document's own name if it carries one, else `file` or `file:line`."""
        number, _, _, line = self._rows[index].tolist()
        own = self._document(index)[1]
        if own is not None:
            return own
        return f"{self._relative(number)}:{line}" if line else self._relative(number)


def text_spans(data: Buffer, document: str, blank: str = "drop") -> Spans:
    """Byte ranges of the documents of one file, without the line ends that separate them."""
    if document == "file":
        if blank == "keep" or data[:].strip():
            yield 0, len(data), 0
    elif document == "line":
        for start, stop, line in _lines(data):
            if blank == "keep" or data[start:stop].strip():
                yield start, stop, line
    else:
        yield from _paragraphs(data)


def _lines(data: Buffer) -> Spans:
    start, line = 0, 1
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        yield start, end - (data[max(start, end - 1) : end] == b"\r"), line
        start, line = end + 1, line + 1


def _paragraphs(data: Buffer) -> Spans:
    first: tuple[int, int] | None = None
    last = 0
    for start, stop, line in _lines(data):
        if data[start:stop].strip():
            first = first or (start, line)
            last = stop
        elif first is not None:
            yield first[0], last, first[1]
            first = None
    if first is not None:
        yield first[0], last, first[1]


def _open(path: str) -> Buffer:
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            with gzip.open(path) as packed:
                return packed.read()
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _refuse_binary(data: Buffer) -> None:
    position = data.find(b"\0")
    if position >= 0:
        raise ValueError(f"binary file (NUL at byte {position})")


def _reason(error: Exception) -> str:
    if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)):
        return f"damaged or truncated gzip file ({error})"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _as_text(data: bytes) -> tuple[str, str | None]:
    return data.decode(), None


def _fields(line: str, fields: tuple[str, ...]) -> list[str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON at column {error.colno} ({error.msg})") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object was expected, found {type(row).__name__}")
    for field in fields:
        if field not in row:
            raise ValueError(f"no field {field!r}; it has {', '.join(map(repr, row)) or 'none'}")
    text = row[fields[0]]
    if not isinstance(text, str):
        raise ValueError(f"field {fields[0]!r} holds {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"field {fields[0]!r} holds half of a surrogate pair") from None
    return [text, *(str(row[field]) for field in fields[1:])]
