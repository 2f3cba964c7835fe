"""Values and texts of flags, checked and converted by the annotation of their field."""

import math
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from ablax.config.duration import Duration
from ablax.config.knobs import RequestError


def coerce(annotation: Any, value: Any, path: str, choices: Sequence[Any] | None = None) -> Any:
    """Checks a value, or converts the text of a flag, by the field's annotation.

    Raises:
      RequestError: with the path, the value and what was expected.
    """
    try:
        result = _coerce(annotation, value)
    except (TypeError, ValueError, OverflowError) as error:
        detail = f" ({error})" if isinstance(error, RequestError) else ""
        raise RequestError(f"{path}={value!r} must be {describe(annotation)}{detail}") from None
    if choices is not None and result not in choices:
        raise RequestError(f"{path}={value!r} must be one of {', '.join(map(str, choices))}")
    return result


def _coerce(annotation: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None or (
            isinstance(value, str) and value.lower() == "none" and type(None) in arguments
        ):
            if type(None) in arguments:
                return None
            raise TypeError
        for option in (a for a in arguments if a is not type(None)):
            try:
                return _coerce(option, value)
            except (TypeError, ValueError, OverflowError):
                continue
        raise TypeError
    if origin is Literal:
        for option in arguments:
            if value == option or (isinstance(value, str) and value == str(option)):
                return option
        raise TypeError
    if origin is tuple:
        return _coerce_tuple(arguments, value)
    if annotation is Duration:
        return Duration(value)
    return _coerce_scalar(annotation, value)


def _coerce_scalar(annotation: Any, value: Any) -> Any:
    if annotation is bool and isinstance(value, str):
        if value.lower() in ("true", "1", "yes"):
            return True
        return False if value.lower() in ("false", "0", "no") else _wrong()
    if annotation is int and isinstance(value, str):
        number = float(value) if re.search(r"[.eE]", value) else int(value)
        return int(number) if number == int(number) else _wrong()
    if annotation is float and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        number = float(value)
        return number if math.isfinite(number) else _wrong()
    if isinstance(value, bool) and annotation is not bool:
        raise TypeError
    return value if isinstance(value, annotation) else _wrong()


def _wrong() -> Any:
    raise TypeError


def _coerce_tuple(arguments: tuple, value: Any) -> tuple:
    if isinstance(value, str):
        text = value.strip().strip("()[]").rstrip(",")
        value = [item.strip().strip("'\"") for item in text.split(",")] if text else []
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_coerce(arguments[0], item) for item in value)
    if len(arguments) != len(value):
        raise TypeError
    return tuple(_coerce(a, item) for a, item in zip(arguments, value, strict=True))


def describe(annotation: Any) -> str:
    """An annotation in words: `int`, `one of a, b`, `int or none`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else describe(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return f"a tuple of {describe(arguments[0])}, comma-separated" if arguments else "a tuple"
    names = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
    return names.get(annotation, "a duration such as 2000, '3 epochs', '2e9 tokens' or '5%'")
