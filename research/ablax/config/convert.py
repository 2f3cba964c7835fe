"""Config dataclasses to nested dicts or one locked ConfigDict, and back, with names and types checked."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from ablax.config.coerce import coerce
from ablax.config.duration import Duration
from ablax.config.knobs import (
    KIND,
    RequestError,
    choose,
    class_of,
    hints,
    kind_of,
    suggest,
)


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain nested dicts: tuples and numbers stay, durations become text or steps."""
    result = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "family" in field.metadata:
            value = {KIND: kind_of(field, value), **to_dict(value)}
        elif dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, Duration):
            value = int(value.amount) if value.unit == "steps" else str(value)
        result[field.name] = value
    return result


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
    """A config dataclass as one locked ConfigDict."""
    # Types are checked when it becomes a dataclass again, where optional fields and durations are understood.
    result = ml_collections.ConfigDict(to_dict(config), type_safe=False, convert_dict=True)
    return result.lock()


def from_dict(
    cls: type,
    values: Mapping[str, Any] | ml_collections.ConfigDict,
    *,
    extend: Iterable[Any] = (),
    imports: bool = True,
    where: str = "",
) -> Any:
    """Builds the config dataclass of nested dicts (or a ConfigDict), checking names and types.

    Raises:
      RequestError: for an unknown key, a value of the wrong type or what the dataclass itself refuses.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = json_copy(values)
    for key in values:
        if key not in fields and key != KIND:
            raise RequestError(f"unknown knob {where + key!r}{suggest(key, fields)}")
    arguments = {}
    for name, field in fields.items():
        if name not in values:
            continue
        value, path = values[name], where + name
        if "family" in field.metadata:
            if isinstance(value, str):
                value = {KIND: value}
            if not isinstance(value, Mapping) or KIND not in value:
                raise RequestError(f"{path} must be a kind or a dict with 'kind', not {value!r}")
            factory = choose(field.metadata["family"].table, value[KIND], extend, imports)
            base = to_dict(factory())
            arguments[name] = from_dict(
                class_of(factory),
                {**base, **value},
                extend=extend,
                imports=imports,
                where=path + ".",
            )
        elif dataclasses.is_dataclass(hints(cls)[name]):
            if not isinstance(value, Mapping):
                raise RequestError(
                    f"{path} is a group of knobs, not {value!r}; set one of its fields"
                )
            arguments[name] = from_dict(
                hints(cls)[name], value, extend=extend, imports=imports, where=path + "."
            )
        else:
            arguments[name] = coerce(hints(cls)[name], value, path, field.metadata.get("choices"))
    try:
        return cls(**arguments)
    except RequestError as error:
        prefix = where.rstrip(".")
        raise RequestError(
            f"{prefix}: {error}" if prefix and not str(error).startswith(prefix) else str(error)
        ) from None


def json_copy(values: Any) -> Any:
    """Nested dicts without ConfigDicts and FieldReferences, not sharing anything with the original."""
    if isinstance(values, (Mapping, ml_collections.ConfigDict)):
        return {str(key): json_copy(value) for key, value in values.items()}
    return values
