"""Compares the arms of a sweep: a table, pages (Markdown, HTML, LaTeX) and pictures in the sweep's folder."""

import argparse
from pathlib import Path

from ablax.commands import flags, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax report`."""
    flags.add_workdir(parser, "the sweep's folder")
    parser.add_argument("--metric", help="what arms are compared by; default: the plan's")
    parser.add_argument(
        "--baseline", help="the arm that the others are compared with; default: the plan's"
    )


def run(args: argparse.Namespace) -> None:
    """Reports; JSON on stdout, a table on stderr."""
    from ablax.sweeps import page, report
    from ablax.sweeps.sections import sections

    found = report.write(args.workdir, args.metric, args.baseline)
    output.emit(found)
    other = [f"not comparable: {line}" for line in page.apart(found)]
    names = ("page", "html", "latex", "picture", "differences", "response", "scale")
    where = [
        f"written: {', '.join(Path(found[name]).name for name in names if found[name])} in {args.workdir}"
    ]
    said = [f"{heading}: {line}" for heading, own in sections(found).items() for line in own]
    lines = other + said + page.notes(found) + where
    output.table(page.caption(found), page.COLUMNS, page.rows(found), lines)
