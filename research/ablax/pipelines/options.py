"""Arguments of pipelines: each is a field of one dataclass, given when a pipeline is made or when it is called."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from ablax.config import RequestError, suggest

Options = TypeVar("Options")

Truncation = bool | Literal["stride"]
"""What happens to a text that is too long: refused (False), cut (True), or read in windows ("stride")."""


def changed(options: Options, given: Mapping[str, Any], task: str) -> Options:
    """Options with some of them changed.

    Raises:
      RequestError: if there is no such option, or a value is out of range.
    """
    names = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    for name in given:
        if name not in names:
            raise RequestError(f"{task} takes no {name}{suggest(name, names)}")
    return dataclasses.replace(options, **given)  # type: ignore[type-var]


def check_reading(batch_size: int, truncation: Truncation, max_length: int | None = None) -> None:
    """Raises RequestError if one of the options that pipelines share is out of range."""
    if batch_size < 1:
        raise RequestError(f"batch_size={batch_size} must be at least 1")
    if truncation not in (True, False, "stride"):
        raise RequestError(f"truncation={truncation!r} must be True, False or 'stride'")
    if max_length is not None and max_length < 1:
        raise RequestError(f"max_length={max_length} must be at least 1")


def listed(inputs: Any, task: str, what: str = "texts") -> tuple[list[str], bool]:
    """The texts, and whether one was given alone.

    Raises:
      RequestError: if something else was given.
    """
    alone = isinstance(inputs, str)
    several = isinstance(inputs, Iterable) and not isinstance(inputs, (str, Mapping))
    texts: list[Any] = list(inputs) if several else [inputs]
    for text in texts:
        if not isinstance(text, str):
            raise RequestError(
                f"{task} takes {what}, not {type(text).__name__}; give a string or a list of strings"
            )
    return texts, alone


def shortest(*lengths: int | None) -> int | None:
    """The smallest of those that are set."""
    return min((length for length in lengths if length is not None), default=None)
