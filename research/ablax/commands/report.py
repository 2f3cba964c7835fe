"""Compares the arms of a sweep: a table, pages (Markdown, HTML, LaTeX) and pictures in the sweep's folder."""

import argparse
from pathlib import Path

from ablax.commands import flags, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax report`."""
    flags.add_workdir(parser, "the sweep's folder")
    parser.add_argument(
        "--metric", help="what arms are compared by; default: what the sweep was started with"
    )


def run(args: argparse.Namespace) -> None:
    """Reports; JSON on stdout, a table on stderr."""
    from ablax.sweeps import page, report

    found = report.write(args.workdir, args.metric)
    output.emit(found)
    other = [f"not comparable: {line}" for line in page.apart(found)]
    names = ("page", "html", "latex", "picture", "differences")
    where = [
        f"written: {', '.join(Path(found[name]).name for name in names if found[name])} in {args.workdir}"
    ]
    lines = other + page.notes(found) + where
    output.table(page.caption(found), page.COLUMNS, page.rows(found), lines)
