"""Where a pipeline's model comes from: a run's folder, or a checkpoint of Hugging Face of which a run is made once."""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablax.config import RequestError
from ablax.data.store import cache_root
from ablax.interop.hub import Source, locate
from ablax.interop.importing import import_hf
from ablax.model import Model, load
from ablax.pipelines.chat_template import FILES, template_of
from ablax.run import RunFailed, RunFolder


def open_model(
    model: str | Path | Model,
    *,
    step: int | str = "best",
    extend: Iterable[Any] = (),
    trust_unverified: bool = False,
    revision: str | None = None,
) -> tuple[Model, Path | None]:
    """The model, and the run's folder if it was loaded from one.

    Args:
      model, revision: see `pipeline`.
      step, extend, trust_unverified: of a run's folder, see `ablax.load`.

    Raises:
      RequestError: if there is no such model.
      RunFailed: if the run that is made of a checkpoint cannot be written.
    """
    if isinstance(model, Model):
        return model, None
    folder = Path(model).expanduser()
    if any(folder.glob("*.safetensors")):
        folder = imported(locate(str(folder), revision))
    elif isinstance(model, str) and not folder.exists():
        folder = imported(locate(model, revision))
    elif revision is not None:
        raise RequestError(f"{folder} is a folder and has no revision {revision!r}; leave it out")
    return load(folder, step, extend=extend, trust_unverified=trust_unverified), folder


def imported(source: Source) -> Path:
    """The run that was made of a checkpoint, in `$ABLAX_CACHE/hf`; it is made if there is none.

    Raises:
      RequestError: if the checkpoint is not known completely.
      RunFailed: if the run cannot be written.
    """
    if source.revision is None:
        name = f"{source.folder.name}-{identity(source)}"
    else:
        name = f"{source.name.replace('/', '--')}-{source.revision[:16]}"
    run = RunFolder(cache_root() / "hf" / name)
    if run.exists():
        return run.path
    say(f"makes a run of {source.name} in {run.path}")
    try:
        found = import_hf(str(source.folder), run.path, say=say)
    except (RequestError, RunFailed):
        if not run.exists():  # another process has made the same meanwhile
            raise
        return run.path
    for name, why in found["dropped"].items():
        say(f"{name} is left out: {why}")
    template = template_of([source.folder])
    if template is not None:  # which stays when the checkpoint goes
        (run.tokenizer / FILES[0]).write_text(template, encoding="utf-8")
    return run.path


def identity(source: Source) -> str:
    """What tells a folder from others, and from itself after a change: names, sizes and times of its files."""
    files = sorted(path for path in source.folder.iterdir() if path.is_file())
    told = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((str(source.folder), told)).encode()).hexdigest()[:16]


def say(line: str) -> None:
    """A line on stderr."""
    print(f"ablax: {line}", file=sys.stderr)


def chat_template(run: Path) -> str | None:
    """The chat template of a run: beside its tokenizer, or where it was imported from; None if there is none.

    Raises:
      RequestError: if a file that should have it cannot be read.
    """
    places = [RunFolder(run).tokenizer]
    origin = RunFolder(run).status().get("imported") or {}
    if origin.get("folder"):
        places.append(Path(origin["folder"]))
    return template_of(places)
