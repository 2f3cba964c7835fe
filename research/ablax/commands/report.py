"""Compares the arms of a sweep: a table, a page (report.md) and a picture (curves.png) in the sweep's folder."""

import argparse

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
    where = [f"written: {path}" for path in (found["page"], found["picture"]) if path]
    lines = other + page.notes(found) + where
    output.table(page.caption(found), page.COLUMNS, page.rows(found), lines)
