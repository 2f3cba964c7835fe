"""What depends on the marks of knobs: fingerprints, differences, traced values."""

import dataclasses
import hashlib
import inspect
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

from ablax.config.duration import Duration
from ablax.config.knobs import KIND, Mark, kind_of


def walk(
    config: Any, where: str = "", mark: Mark | None = None
) -> Iterator[tuple[str, dataclasses.Field, Any, Mark]]:
    """Yields (dotted path, field, value, mark) of every leaf and every `kind`; a group's mark covers what is in it."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), where + field.name
        inherited = mark or (field.metadata["mark"] if field.metadata["mark"] != "result" else None)
        own = inherited or "result"
        if "family" in field.metadata:
            yield f"{path}.{KIND}", field, kind_of(field, value), own
        if dataclasses.is_dataclass(value):
            yield from walk(value, path + ".", inherited)
        else:
            yield path, field, value, own


def flatten(config: Any, mark: Mark | None = None) -> dict[str, Any]:
    """Dotted path -> JSON value of every knob (of one mark)."""
    return {
        path: str(value) if isinstance(value, Duration) else value
        for path, _, value, own in walk(config)
        if mark is None or own == mark
    }


def fingerprint(config: Any) -> str:
    """Hash of the `result` knobs and of the source of classes from outside: equal hashes promise equal results."""
    content = {"knobs": flatten(config, "result"), "code": extension_sources(config)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()


def differences(old: Any, new: Any, mark: Mark | None = None) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old, new) of knobs that differ; a knob that one side lacks is None there."""
    a, b = flatten(old, mark), flatten(new, mark)
    return {key: (a.get(key), b.get(key)) for key in sorted(a | b) if a.get(key) != b.get(key)}


def extension_sources(config: Any) -> dict[str, str]:
    """`module:Name` -> source text of every config class in the tree that is not Ablax's own.

    The text is that of the whole module, because a class's result depends on what stands beside it; of a class
    defined in a notebook cell, the class's own.
    """
    sources = {}
    for value in dataclasses_in(config):
        cls = type(value)
        if cls.__module__.partition(".")[0] != "ablax":
            module = sys.modules.get(cls.__module__)
            subject = module if getattr(module, "__file__", None) else cls
            try:
                text = inspect.getsource(subject)  # type: ignore[arg-type]
            except (OSError, TypeError):
                text = f"source of {cls.__qualname__} is not available"
            sources[f"{cls.__module__}:{cls.__qualname__}"] = text
    return sources


def dataclasses_in(config: Any) -> Iterator[Any]:
    yield config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from dataclasses_in(value)


def traced(config: Any) -> dict[str, Any]:
    """The traced knobs as nested dicts of floats; groups without traced knobs are left out."""
    result = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            if inner := traced(value):
                result[field.name] = inner
        elif field.metadata.get("traced"):
            result[field.name] = float(value)
    return result


def static(config: Any) -> Any:
    """The same config with nan in place of every traced knob that is not zero.

    Programs are built from this one: a traced value that leaks in as a constant poisons the result. Zero stays, so
    that code may leave dropout out of the program when its rate is zero.
    """
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = static(value)
        elif field.metadata.get("traced") and value != 0:
            changes[field.name] = math.nan
    return dataclasses.replace(config, **changes)


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
