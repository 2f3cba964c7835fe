"""Lists the runs under a folder."""

import argparse
from pathlib import Path
from typing import Any

from ablax.commands import output
from ablax.history import LOSSES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax runs`."""
    parser.add_argument(
        "--root", required=True, type=Path, metavar="DIR", help="the folder that holds them"
    )


def run(args: argparse.Namespace) -> None:
    """Lists; JSON on stdout, a table on stderr."""
    from ablax.folders import runs

    found = runs(args.root)
    output.emit(found)
    columns = ("workdir", "status", "step", "parameters", "seconds", "metric", "value")
    rows = [(*(row.get(name) for name in columns[:5]), *_metric(row["metrics"])) for row in found]
    output.table(f"runs under {args.root}", columns, rows)


def _metric(metrics: dict[str, Any]) -> tuple[str | None, float | None]:
    """The metric that a run is known by."""
    name = next((name for name in ("bits_per_byte", *LOSSES) if name in metrics), None)
    return name, metrics[name] if name else None
