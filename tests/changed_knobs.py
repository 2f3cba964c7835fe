"""Every knob of a config with another value: what the law of knobs compares."""

import dataclasses
import types
import typing
from typing import Any, Literal

from ablax.config import Duration, hints


def other(annotation: Any, value: Any, choices: Any) -> Any:
    """A value unlike `value`, by the field's annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if choices is not None:
        return next(c for c in choices if c != value)
    if origin in (typing.Union, types.UnionType):
        inner = next(a for a in arguments if a is not type(None))
        return other(
            inner,
            {int: 4, float: 0.25, str: "x", bool: False}.get(inner, value)
            if value is None
            else value,
            None,
        )
    if origin is Literal:
        return next(a for a in arguments if a != value)
    if origin is tuple:
        return (*value, 8) if value else (("nothing",) if arguments[0] is str else (8,))
    if annotation is Duration:
        return Duration("50%") if value != Duration("50%") else Duration("25%")
    return {
        bool: lambda v: not v,
        int: lambda v: v * 2 if v else 1,
        float: lambda v: v / 2 if v else 0.25,
        str: lambda v: v + "x",
    }[annotation](value)


def changed_fields(config: Any, special: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, config before, config after) of every plain field; `special`: where `other` fails."""
    result = []
    for field in dataclasses.fields(config):
        if "family" in field.metadata or dataclasses.is_dataclass(getattr(config, field.name)):
            continue
        before, value = config, None
        if field.name in special:
            context, value = special[field.name]
            before = dataclasses.replace(config, **context)
        if value is None:
            value = other(
                hints(type(config))[field.name],
                getattr(before, field.name),
                field.metadata["choices"],
            )
        result.append((field.name, before, dataclasses.replace(before, **{field.name: value})))
    return result
