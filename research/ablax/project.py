"""Writing a user's project: a model variant, its experiment and its test, from files that ship with Ablax."""

import importlib.resources
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from ablax.config import RequestError

NAME = "{{name}}"


def _files(folder: Traversable, where: PurePosixPath) -> Iterator[tuple[PurePosixPath, str]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name == "__pycache__":
            continue
        if entry.is_dir():
            yield from _files(entry, where / entry.name)
        else:
            yield where / entry.name, entry.read_text(encoding="utf-8")


def write_project(folder: Path) -> list[Path]:
    """Writes the project's files.

    Args:
      folder: made if missing.

    Returns:
      The files, relative to the folder.

    Raises:
      RequestError: if the folder holds anything, is no folder or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        pass
    except OSError as error:
        raise RequestError(
            f"{folder} cannot be made ({error.strerror}); choose another place"
        ) from None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} exists and is not an empty folder; choose a new name")
    source = importlib.resources.files("ablax") / "templates" / "project"
    written = []
    for path, text in _files(source, PurePosixPath()):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.replace(NAME, folder.resolve().name), encoding="utf-8")
        written.append(Path(path))
    return written
