"""Where a pipeline's model comes from: a run's folder, or a checkpoint of which a run is made once."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablax.model import Model, load
from ablax.pipelines.chat_template import template_of
from ablax.run import RunFolder


def open_model(
    model: str | Path | Model,
    *,
    step: int | str = "best",
    extend: Iterable[Any] = (),
    trust_unverified: bool = False,
) -> tuple[Model, Path | None]:
    """The model, and the run's folder if it was loaded from one.

    Args:
      model: see `pipeline`.
      step, extend, trust_unverified: of a run's folder, see `ablax.load`.

    Raises:
      RequestError: if there is no such model.
    """
    if isinstance(model, Model):
        return model, None
    folder = Path(model).expanduser()
    return load(folder, step, extend=extend, trust_unverified=trust_unverified), folder


def chat_template(run: Path) -> str | None:
    """The chat template of a run: beside its tokenizer, or where it was imported from; None if there is none.

    Raises:
      RequestError: if a file that should have it cannot be read.
    """
    places = [RunFolder(run).tokenizer]
    imported = RunFolder(run).status().get("imported") or {}
    if imported.get("folder"):
        places.append(Path(imported["folder"]))
    return template_of(places)
