"""Lists the runs under a folder."""

import argparse
from pathlib import Path

from ablax.commands import output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax runs`."""
    parser.add_argument(
        "--root", required=True, type=Path, metavar="DIR", help="the folder that holds them"
    )


def run(args: argparse.Namespace) -> None:
    """Lists; JSON on stdout, a table on stderr."""
    from ablax.folders import runs

    found = output.plain(runs(args.root))
    output.emit(found)
    columns = [
        name for name in (found[0] if found else {}) if not isinstance(found[0][name], (dict, list))
    ]
    output.table(
        f"runs under {args.root}", columns, [[row.get(name) for name in columns] for row in found]
    )
