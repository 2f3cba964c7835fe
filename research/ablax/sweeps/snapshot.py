"""The code that a sweep runs: copied beside its cells as it starts, so that editing goes on without changing a cell."""

import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ablax
from ablax.run import CODE_STATE, code_state

CODE = "code"
"""The folder of a sweep that holds one folder for every state of the code that its cells ran."""
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


def package() -> Path:
    """The folder of the package that runs."""
    return Path(ablax.__file__).resolve().parent


def snapshot(sweep: Path, extend: Iterable[Any] = ()) -> Path:
    """Keeps the code of Ablax, uncommitted changes included, and of the modules that `extend` names.

    Returns:
      A folder for PYTHONPATH. What is there already is not copied again.
    """
    state = code_state(package())
    target = sweep / CODE / state["sha256"][:16]
    if not target.is_dir():
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        shutil.copytree(package(), temporary / package().name, ignore=LEFT_OUT)
        (temporary / CODE_STATE).write_text(json.dumps(state, indent=2) + "\n")
        try:
            os.rename(temporary, target)
        except OSError:  # another controller was faster
            shutil.rmtree(temporary)
    for source in sorted(set(map(_source, extend))):
        _keep(source, target)
    return target


def _source(extension: Any) -> Path:
    """The module's file, or the folder of the outermost package that it stands in."""
    name = extension.partition(":")[0] if isinstance(extension, str) else extension.__module__
    root = name.partition(".")[0]
    file = Path(getattr(sys.modules[root], "__file__", None) or sys.modules[name].__file__ or "")
    return file.parent if file.name == "__init__.py" else file


def _keep(source: Path, target: Path) -> None:
    """Copies a module once: an edited one is a state of its own, which the run's `extension_code` tells apart."""
    kept = target / source.name
    if kept.exists():
        return
    if source.is_dir():
        shutil.copytree(source, kept, ignore=LEFT_OUT)
    else:
        shutil.copy2(source, kept)
