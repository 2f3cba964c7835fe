"""Flat overrides: split off a command line, and applied, kinds first."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from ablax.config.convert import json_copy, to_dict
from ablax.config.knobs import (
    KIND,
    RequestError,
    choose,
    class_of,
    hints,
    suggest,
    tag_of,
)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Splits `--config.a.b=v` and `--config.a.b v` off a command line.

    Returns:
      The other arguments, and the overrides by dotted path.
    """
    rest, overrides = [], {}
    arguments: Iterator[str] = iter(argv)
    for argument in arguments:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        path, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            value = next(arguments, None)
            if value is None or value.startswith("--"):
                raise RequestError(f"--config.{path} has no value; write --config.{path}=VALUE")
        if path in overrides:
            raise RequestError(f"--config.{path} is given twice; keep one of them")
        overrides[path] = value
    return rest, overrides


def override(
    root: type,
    values: Mapping[str, Any] | ml_collections.ConfigDict,
    overrides: Mapping[str, Any],
    *,
    extend: Iterable[Any] = (),
    imports: bool = True,
) -> dict[str, Any]:
    """Applies flat overrides to nested dicts: kinds first whatever their order, then the fields of those kinds.

    Args:
      root: the dataclass that the dicts describe.
      values: nested dicts (or a ConfigDict) of a whole configuration.
      overrides: dotted path -> value, or its text.

    Returns:
      New nested dicts, not yet validated across fields.

    Raises:
      RequestError: for a path that does not exist.
    """
    result = json_copy(values)
    pending = {
        path.removesuffix("." + KIND): value
        for path, value in overrides.items()
        if path.endswith("." + KIND)
    }
    rest = {path: value for path, value in overrides.items() if not path.endswith("." + KIND)}
    for path, value in rest.copy().items():
        if _is_family(root, result, path, pending, extend, imports) and not isinstance(
            value, Mapping
        ):
            if path in pending:
                raise RequestError(f"{path} and {path}.kind are both given; keep one of them")
            pending[path] = rest.pop(path)
    for path in sorted(pending, key=lambda p: p.count(".")):
        holder, field = _locate(root, result, path, extend, imports)
        if "family" not in field.metadata:
            raise RequestError(f"{path} has no kinds; it is a group of knobs")
        tag = tag_of(field, pending[path])
        factory = choose(field.metadata["family"].table, tag, extend, imports)
        holder[field.name] = {KIND: _kind_only(field, tag, factory), **to_dict(factory())}
    for path, value in rest.items():
        holder, field = _locate(root, result, path, extend, imports)
        holder[field.name] = json_copy(value) if isinstance(value, Mapping) else value
    return result


def _kind_only(field: dataclasses.Field, tag: str, factory: Any) -> str:
    cls = class_of(factory)
    table = field.metadata["family"].table
    return next((k for k, c in table.items() if c is cls), f"{cls.__module__}:{cls.__qualname__}")


def _is_family(root, values, path, pending, extend, imports) -> bool:
    if any(path.startswith(p + ".") for p in pending):
        return False
    try:
        _, field = _locate(root, values, path, extend, imports)
    except RequestError:
        return False
    return "family" in field.metadata


def _locate(root, values, path, extend, imports) -> tuple[dict[str, Any], dataclasses.Field]:
    """The dict that holds `path` and the field that declares it."""
    cls, holder, seen = root, values, []
    parts = path.split(".")
    for depth, part in enumerate(parts):
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if part not in fields:
            where = ".".join([*seen, part])
            kind = f" (kind {holder[KIND]!r})" if KIND in holder else ""
            raise RequestError(f"unknown knob {where!r}{kind}{suggest(part, fields)}")
        if depth == len(parts) - 1:
            return holder, fields[part]
        inner = holder[part]
        if "family" in fields[part].metadata:
            cls = class_of(
                choose(fields[part].metadata["family"].table, inner[KIND], extend, imports)
            )
        elif dataclasses.is_dataclass(hints(cls)[part]):
            cls = hints(cls)[part]
        else:
            raise RequestError(
                f"{'.'.join([*seen, part])} is one knob and has no field {parts[depth + 1]!r}"
            )
        holder, seen = inner, [*seen, part]
    raise AssertionError(path)
