"""Writes a project of your own: a model, its experiment and its test."""

import argparse
import importlib.util
from pathlib import Path

from ablax.commands import output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax new`."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="where to write it; must not hold anything"
    )


def run(args: argparse.Namespace) -> None:
    """Writes the project; its files as JSON."""
    from ablax.project import write_project

    files = write_project(args.folder)
    output.emit({"folder": str(args.folder), "files": [str(path) for path in files]})
    first = "" if importlib.util.find_spec("pytest") else "pip install pytest, then "
    output.say(f"next: cd {args.folder}, then {first}python -m pytest, then read README.md")
