"""Notes and tags that people put on a run: `notes.json` in its folder, beside what the run writes and never by it.

A fork starts without them: what was said of the parent need not hold for the child.
"""

import contextlib
import fcntl
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ablax.config import RequestError
from ablax.run import RunFolder, now, write_json

NOTES = "notes.json"
TAG = re.compile(r"[A-Za-z0-9][\w.:/-]*")


def read_notes(folder: Path) -> dict[str, Any]:
    """`tags` in order, and `notes`, oldest first, each with `time` and `text`; what cannot be read counts as absent."""
    try:
        found = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        return {"tags": sorted(found["tags"]), "notes": list(found["notes"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {"tags": [], "notes": []}


def add_note(workdir: Path | str, text: str) -> dict[str, Any]:
    """Adds a note to a run, which may be training.

    Raises:
      RequestError: if there is no such run, the text is empty, or the folder takes no writes.
    """
    if not text.strip():
        raise RequestError("a note needs a text: ablax runs note RUN TEXT")
    with changing(workdir) as found:
        found["notes"].append({"time": now(), "text": text})
    return found


def change_tags(workdir: Path | str, add: Iterable[str], remove: Iterable[str]) -> dict[str, Any]:
    """Puts tags on a run, which may be training, and takes others off.

    Raises:
      RequestError: if there is no such run, a tag is malformed, or one to be removed is not there.
    """
    add, remove = list(add), list(remove)
    for tag in (*add, *remove):
        if not TAG.fullmatch(tag):
            raise RequestError(f"{tag!r} is no tag: letters, digits and _ . : / - only")
    with changing(workdir) as found:
        if missing := [tag for tag in remove if tag not in found["tags"]]:
            raise RequestError(f"{workdir} has no tag {missing[0]!r}; it has {found['tags']}")
        found["tags"] = sorted({*found["tags"], *add} - set(remove))
    return found


@contextlib.contextmanager
def changing(workdir: Path | str) -> Iterator[dict[str, Any]]:
    """A run's notes, to be changed; written when all went well. Two people at once wait for each other."""
    folder = RunFolder(workdir).require().path
    try:
        # Not run.json, which the training process replaces, and not its lock, which it holds.
        with (folder / f"{NOTES}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = read_notes(folder)
            yield found
            write_json(folder / NOTES, found)
    except OSError as error:
        raise RequestError(f"{folder / NOTES} cannot be written ({error.strerror})") from None
