"""Configuration: frozen dataclasses <-> one locked ConfigDict, overrides, tagged unions, durations, fingerprint.

A knob is declared once, as a documented field of a frozen dataclass beside the code that reads it. This module knows
nothing about language models and does not import JAX.
"""

import dataclasses
import difflib
import functools
import hashlib
import importlib
import inspect
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import ml_collections

Mark = Literal["result", "execution", "cosmetic"]
KIND = "kind"


class RequestError(ValueError):
    """The request was wrong: one line that says what, where and how to fix it. Commands exit with 2."""


class Duration:
    """A length of training: `2000` (steps), `"3 epochs"`, `"2e9 tokens"` or `"5%"` (of the whole run).

    Raises:
      RequestError: if the text is none of these.
    """

    _PATTERN: ClassVar = re.compile(
        r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*(%|[a-z]*)\s*$"
    )
    _UNITS: ClassVar = {
        "": "steps",
        "step": "steps",
        "steps": "steps",
        "epoch": "epochs",
        "epochs": "epochs",
    }
    _UNITS |= {"token": "tokens", "tokens": "tokens", "%": "%"}

    def __init__(self, value: "int | str | Duration"):
        text = str(value)
        match = self._PATTERN.match(text)
        if match is None or match[2] not in self._UNITS or isinstance(value, bool):
            raise RequestError(
                f"{text!r} is not a duration; write 2000 (steps), '3 epochs', '2e9 tokens' or '5%'"
            )
        self.amount = float(match[1])
        self.unit = self._UNITS[match[2]]
        if self.unit == "steps" and self.amount != int(self.amount):
            raise RequestError(
                f"{text!r} is not a whole number of steps; write {round(self.amount)}"
            )

    def steps(
        self,
        total: int | None = None,
        tokens_per_step: int | None = None,
        steps_per_epoch: float | None = None,
    ) -> int:
        """Number of optimizer steps, given what the run knows about itself.

        Raises:
          RequestError: if the unit needs a quantity that this run does not have.
        """
        per = {"steps": 1.0, "%": (total or 0) / 100, "epochs": steps_per_epoch}
        per["tokens"] = 1 / tokens_per_step if tokens_per_step else None
        rate = per[self.unit]
        if rate is None or (self.unit == "%" and total is None):
            raise RequestError(
                f"duration {self} cannot be turned into steps here; write a number of steps"
            )
        return math.ceil(self.amount * rate - 1e-9)

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        if self.unit == "steps":
            return str(amount)
        return f"{amount}%" if self.unit == "%" else f"{amount} {self.unit}"

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


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


def kind_of(field: dataclasses.Field, value: Any) -> str:
    """The tag under which a tagged union's value is written: its table key, else `module:Name`."""
    for kind, cls in field.metadata["family"].table.items():
        if type(value) is cls:
            return kind
    return f"{type(value).__module__}:{type(value).__qualname__}"


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


# -- dataclass <-> ConfigDict ------------------------------------------------------------------------------------------


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
                _class_of(factory),
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


def _class_of(factory: Any) -> type:
    return factory if isinstance(factory, type) else factory.args[0]


def coerce(annotation: Any, value: Any, path: str, choices: Sequence[Any] | None = None) -> Any:
    """Checks a value, or converts the text of a flag, by the field's annotation.

    Raises:
      RequestError: with the path, the value and what was expected.
    """
    try:
        result = _coerce(annotation, value)
    except (TypeError, ValueError) as error:
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
            except (TypeError, ValueError):
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
        return (
            {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                value.lower()
            ]
            if value.lower() in ("true", "1", "yes", "false", "0", "no")
            else _wrong()
        )
    if annotation is int and isinstance(value, str):
        number = float(value) if re.search(r"[.eE]", value) else int(value)
        return int(number) if number == int(number) else _wrong()
    if annotation is float and isinstance(value, (str, int)) and not isinstance(value, bool):
        return float(value)
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
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(annotation, "a duration such as 2000, '3 epochs', '2e9 tokens' or '5%'")


# -- overrides ---------------------------------------------------------------------------------------------------------


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
        if _is_family(root, result, path, {**pending}, extend, imports) and not isinstance(
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


def tag_of(field: dataclasses.Field, value: Any) -> str:
    """The tag of what somebody wrote as a kind: text, or a config class."""
    if isinstance(value, type):
        return next(
            (k for k, cls in field.metadata["family"].table.items() if cls is value),
            f"{value.__module__}:{value.__qualname__}",
        )
    return str(value)


def _kind_only(field: dataclasses.Field, tag: str, factory: Any) -> str:
    cls = _class_of(factory)
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
            cls = _class_of(
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


def json_copy(values: Any) -> Any:
    """Nested dicts without ConfigDicts and FieldReferences, not sharing anything with the original."""
    if isinstance(values, (Mapping, ml_collections.ConfigDict)):
        return {str(key): json_copy(value) for key, value in values.items()}
    return values


# -- what depends on marks ---------------------------------------------------------------------------------------------


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


def cross_check(field: str, value: Any, problem: str, remedy: str) -> RequestError:
    """The error of a mistake across fields: name, value, what is wrong, what to do."""
    return RequestError(f"{field}={value} {problem}; {remedy}")


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
