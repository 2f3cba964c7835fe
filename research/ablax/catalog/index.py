"""An SQLite index of the runs and sweeps under a root: made from the folders, and never the only place of any fact.

It is held in memory and kept as one file of the user's cache, written to another name and renamed. So roots that take
no writes, shared file systems on which SQLite cannot lock, and two lists at once all work; whatever is wrong with the
file, the folders are read again. A folder is read again when an inode, a time or a size of its files has changed.

Tables: `runs(path, kind, name, status, step, parameters, seconds, seed, started, ended, fingerprint, note, document)`,
`knobs(path, name, value)`, `metrics(path, split, step, name, value, last)`, `hashes(path, what, value)`,
`tags(path, tag)`; `path` is relative to the root.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablax.catalog.entry import Entry, folders_in, read_entry, stamp_of
from ablax.config import RequestError
from ablax.data.store import cache_root

FORMAT = 1
COLUMNS = (
    "name",
    "status",
    "step",
    "parameters",
    "seconds",
    "seed",
    "started",
    "ended",
    "fingerprint",
)
TABLES = f"""
create table runs(path text primary key, kind text, {", ".join(COLUMNS)}, note text, document text, stamp text);
create table knobs(path text, name text, value);
create table metrics(path text, split text, step integer, name text, value real, last integer);
create table hashes(path text, what text, value text);
create table tags(path text, tag text);
create index knob on knobs(name, value);
create index metric on metrics(name, value);
create index hash on hashes(value);
pragma user_version = {FORMAT};
"""
PARTS = ("runs", "knobs", "metrics", "hashes", "tags")
ALLOWED = (
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
)


class Index:
    """What is under a root, as of now.

    Args:
      root: where to look.
      rebuild: reads every folder again.
      cache: a folder for the index's file; the user's cache when None.

    Raises:
      RequestError: if the root does not exist.
    """

    def __init__(self, root: Path | str, rebuild: bool = False, cache: Path | None = None):
        self.root = Path(root).expanduser().resolve()
        if not self.root.is_dir():
            raise RequestError(f"{self.root} does not exist; give --root a folder that holds runs")
        name = hashlib.sha256(str(self.root).encode()).hexdigest()[:16]
        self.file = (cache or cache_root() / "runs") / f"{name}.sqlite"
        self.unread: dict[str, str] = {}
        self.read = 0
        self._open(rebuild)
        if self._refresh():
            self._keep()

    def select(self, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows of a query, by the names of its columns; it cannot change anything, nor read another file.

        Raises:
          RequestError: if SQLite refuses it.
        """
        self._data.set_authorizer(
            lambda action, *_: sqlite3.SQLITE_OK if action in ALLOWED else sqlite3.SQLITE_DENY
        )
        try:
            cursor = self._data.execute(sql, values)
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor]
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise RequestError(
                f"--sql={sql}: {error}; it may only select from runs, knobs, metrics, hashes and tags"
            ) from None
        finally:
            self._data.set_authorizer(None)

    def rows(self) -> list[dict[str, Any]]:
        """What a list shows of every run and sweep, with its `path`, in the order of the paths."""
        found = self.select("select path, document from runs order by path")
        return [{"path": row["path"], **json.loads(row["document"])} for row in found]

    def _open(self, rebuild: bool) -> None:
        self._data = sqlite3.connect(":memory:", isolation_level=None)
        if not rebuild:
            with contextlib.suppress(
                OSError, sqlite3.Error, MemoryError
            ):  # the last: an empty file
                self._data.deserialize(self.file.read_bytes())
                (version,) = self._data.execute("pragma user_version").fetchone()
                (health,) = self._data.execute("pragma quick_check(1)").fetchone()
                if (version, health) == (FORMAT, "ok"):
                    return
            self._data.close()
            self._data = sqlite3.connect(":memory:", isolation_level=None)
        self._data.executescript(TABLES)

    def _refresh(self) -> bool:
        known = dict(self._data.execute("select path, stamp from runs"))
        there: set[str] = set()
        changed = False
        self._data.execute("begin")
        for folder, kind in folders_in(self.root):
            path = str(folder.relative_to(self.root))
            stamp = stamp_of(folder, kind)
            there.add(path)
            if known.get(path) == stamp:
                continue
            changed = True
            self._forget(path)
            try:
                entry = read_entry(folder, kind)
            except (RequestError, OSError, ValueError, LookupError, TypeError) as error:
                self.unread[path] = str(error) or repr(error)
                continue
            self._insert(path, stamp, entry)
            self.read += 1
        for path in known.keys() - there:
            changed = True
            self._forget(path)
        self._data.execute("commit")
        return changed

    def _forget(self, path: str) -> None:
        for table in PARTS:
            self._data.execute(f"delete from {table} where path = ?", (path,))

    def _insert(self, path: str, stamp: str, entry: Entry) -> None:
        row, data = entry.row, self._data
        notes = "\n".join(note["text"] for note in row.get("notes", []))
        values = [path, row["kind"], *(_plain(row.get(c)) for c in COLUMNS), notes]
        values += [json.dumps(row), stamp]
        data.execute(f"insert into runs values ({', '.join('?' * len(values))})", values)
        knobs = [(path, name, _plain(value)) for name, value in entry.knobs.items()]
        data.executemany("insert into knobs values (?, ?, ?)", knobs)
        last = row["metrics"]
        metrics = [
            (
                path,
                split,
                step,
                name,
                value,
                split == last.get("split") and step == last.get("step"),
            )
            for split, step, name, value in entry.numbers
        ]
        data.executemany("insert into metrics values (?, ?, ?, ?, ?, ?)", metrics)
        hashes = [(path, *one) for one in entry.hashes]
        data.executemany("insert into hashes values (?, ?, ?)", hashes)
        tags = [(path, tag) for tag in row.get("tags", [])]
        data.executemany("insert into tags values (?, ?)", tags)

    def _keep(self) -> None:
        with contextlib.suppress(
            OSError
        ):  # it stays in memory, and the next call reads the folders
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            temporary.write_bytes(self._data.serialize())
            os.replace(temporary, self.file)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, float, str)) else json.dumps(value)
