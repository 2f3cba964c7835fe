"""Declaring knobs: documented fields of frozen dataclasses, and tagged unions among them."""

import dataclasses
import difflib
import functools
import importlib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

Mark = Literal["result", "execution", "cosmetic"]
KIND = "kind"


class RequestError(ValueError):
    """The request was wrong: one line that says what, where and how to fix it. Commands exit with 2."""


def cross_check(field: str, value: Any, problem: str, remedy: str) -> RequestError:
    """The error of a mistake across fields: name, value, what is wrong, what to do."""
    return RequestError(f"{field}={value} {problem}; {remedy}")


def check_seed(seed: int) -> None:
    """Refuses what the generators do not take alike: JAX would wrap it around, NumPy stop at a negative one.

    Raises:
      RequestError: if the seed is not in [0, 2**32).
    """
    if not 0 <= seed < 2**32:
        raise RequestError(f"seed={seed} must be a whole number in [0, 2**32)")


@dataclasses.dataclass(frozen=True)
class Family:
    """A table of the config classes that a tagged union may hold: `{"kind": ConfigClass}`."""

    table: Mapping[str, type]


def knob(
    default: Any,
    doc: str,
    *,
    mark: Mark = "result",
    traced: bool = False,
    choices: Sequence[Any] | None = None,
) -> Any:
    """A documented dataclass field.

    Args:
      default: its value when nobody sets it.
      doc: what it does, with its unit.
      mark: `result` (part of the fingerprint), `execution` (may change on resume) or `cosmetic`.
      traced: enters compiled programs as a float32 scalar, never as a constant.
      choices: the allowed values, for a string or a number without a `Literal` annotation.
    """
    metadata = {"doc": doc, "mark": mark, "traced": traced, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def family(table: Mapping[str, type], default: str, doc: str, *, mark: Mark = "result") -> Any:
    """A dataclass field that holds one of a family of config classes, chosen by `kind` (see `choose`)."""
    metadata = {"doc": doc, "mark": mark, "traced": False, "choices": None, "family": Family(table)}
    return dataclasses.field(default=choose(table, default)(), metadata=metadata)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The annotations of a config class, evaluated."""
    return typing.get_type_hints(cls)


def suggest(word: str, words: Iterable[str]) -> str:
    """` - did you mean 'x'?`, or the list of what there is."""
    words = sorted(words)
    close = difflib.get_close_matches(word, words, 1, 0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(words)}"


def choose(
    table: Mapping[str, type], tag: str, extend: Iterable[Any] = (), imports: bool = True
) -> Callable:
    """Finds the class of a tag: `kind`, `kind:preset`, `kind:argument`, `Name` of an extension or `module:Name`.

    Args:
      extend: classes that the caller defined (in a notebook cell), found by their names or by `module:Name`.
      imports: whether `module:Name` may import a module. Loading a finished run must not.

    Returns:
      A callable without arguments that returns the config dataclass.

    Raises:
      RequestError: if there is no such kind, preset or class.
    """
    head, _, rest = tag.partition(":")
    own = {c.__name__: c for c in extend} | {f"{c.__module__}:{c.__qualname__}": c for c in extend}
    if tag in own:
        return own[tag]
    if head in table:
        return functools.partial(_preset, table[head], head, rest) if rest else table[head]
    if not rest or "/" in head:
        raise RequestError(
            f"unknown kind {tag!r}{suggest(tag, table)}; a class of yours is 'module:Name'"
        )
    name, _, preset = rest.partition(":")
    if f"{head}:{name}" in own:
        return functools.partial(_preset, own[f"{head}:{name}"], tag, preset)
    if not imports:
        raise RequestError(
            f"{tag!r} is code outside Ablax; name it to allow it: extend=[{name}] or --extend={head}:{name}"
        )
    cls = import_class(f"{head}:{name}")
    return functools.partial(_preset, cls, tag, preset) if preset else cls


def import_class(spec: str) -> type:
    """Imports `module:Name`, which must be a frozen config dataclass with a `build` method.

    Raises:
      RequestError: if the module or the name does not exist or is not such a class.
    """
    module, _, name = spec.partition(":")
    if not module or module.startswith("."):
        raise RequestError(f"{spec!r} names no module; write module:Name")
    try:
        cls = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except ModuleNotFoundError as error:
        raise RequestError(f"{spec!r}: {error}; is it installed, or on PYTHONPATH?") from error
    except AttributeError as error:
        raise RequestError(f"{spec!r}: {error}") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise RequestError(
            f"{spec!r} is not a dataclass; decorate it with @dataclasses.dataclass(frozen=True)"
        )
    return cls


def class_of(factory: Any) -> type:
    return factory if isinstance(factory, type) else factory.args[0]


def _preset(cls: type, kind: str, argument: str) -> Any:
    presets = getattr(cls, "PRESETS", {})
    if argument in presets:
        return _replaced(cls(), presets[argument])
    name = getattr(cls, "ARGUMENT", None)
    if name is not None:
        return cls(**{name: argument})
    raise RequestError(f"{kind!r} has no preset {argument!r}{suggest(argument, presets)}")


def _replaced(config: Any, values: Mapping[str, Any]) -> Any:
    """The config with dotted fields changed, all at once: between two changes it might not be valid."""
    changes: dict[str, Any] = {path: value for path, value in values.items() if "." not in path}
    for head in {path.partition(".")[0] for path in values if "." in path}:
        inner = {p.partition(".")[2]: v for p, v in values.items() if p.startswith(head + ".")}
        changes[head] = _replaced(changes.get(head, getattr(config, head)), inner)
    return dataclasses.replace(config, **changes)


def kind_of(field: dataclasses.Field, value: Any) -> str:
    """The tag under which a tagged union's value is written: its table key, else `module:Name`."""
    for kind, cls in field.metadata["family"].table.items():
        if type(value) is cls:
            return kind
    return f"{type(value).__module__}:{type(value).__qualname__}"


def tag_of(field: dataclasses.Field, value: Any) -> str:
    """The tag of what somebody wrote as a kind: text, or a config class."""
    if isinstance(value, type):
        return next(
            (k for k, cls in field.metadata["family"].table.items() if cls is value),
            f"{value.__module__}:{value.__qualname__}",
        )
    return str(value)
