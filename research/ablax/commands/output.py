"""What commands print: results as JSON on stdout, tables and talk on stderr."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DONE, FAILED, REFUSED, TAKEN, PREEMPTED, INTERRUPTED = 0, 1, 2, 3, 75, 130
"""Exit codes."""


def say(line: str) -> None:
    """One line of talk on stderr."""
    print(f"ablax: {line}", file=sys.stderr)


def passage(given: str, made: str) -> None:
    """A text on stderr: what was given, in bold, and what a model made of it."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(given, "bold") + Text(made))


def emit(result: Any) -> None:
    """Prints a result as one JSON document on stdout; numbers that are not finite become null."""
    json.dump(plain(result), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """JSON values of dicts, sequences, dataclasses, NumPy scalars and arrays, paths and durations."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist") and not isinstance(value, type):
        return plain(value.tolist())
    return str(value)


def number(value: Any) -> str:
    """A number for people: four significant digits, thousands separated; `-` for what is absent."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def size(count: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.4g} TiB"


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], notes: Sequence[str] = ()
) -> None:
    """A table on stderr: the first column folds where the terminal is narrow, numbers stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=160)
    drawn = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    rows = [tuple(row) for row in rows]
    for index, column in enumerate(columns):
        words = any(isinstance(row[index], str) and not _numeric(row[index]) for row in rows)
        justify = "left" if words or index == 0 else "right"
        drawn.add_column(column, justify=justify, overflow="fold", no_wrap=index > 0 and not words)
    for row in rows:
        drawn.add_row(*(Text(number(cell)) for cell in row))
    console.print(drawn)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def _numeric(text: str) -> bool:
    return text == "-" or text[:1].lstrip("+-").isdigit() or text[:2].lstrip("+-").isdigit()
