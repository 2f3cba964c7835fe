"""Shows what differs between two runs: knobs, code, libraries, machine, data, batches, results."""

import argparse
from pathlib import Path
from typing import Any

from ablax.commands import output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ablax diff`."""
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="the folders of two runs")


def run(args: argparse.Namespace) -> None:
    """Compares; JSON on stdout, a table on stderr."""
    from ablax.difference import diff

    found = diff(*args.runs)
    output.emit(found)
    rows = [
        (what, name, *map(_shown, pair))
        for what in ("knobs", "code", "files", "versions", "machine", "data", "results")
        for name, pair in found[what].items()
    ]
    notes = [found["batches"]["said"], *([found["related"]] if found["related"] else [])]
    title = f"{found['runs'][0]} against {found['runs'][1]}"
    output.table(title, ("what", "name", "first", "second"), rows, notes)


def _shown(value: Any) -> str:
    if isinstance(value, str) and len(value) > 20 and not value.strip("0123456789abcdef"):
        return value[:12]
    return "-" if value is None else output.number(value)
