"""Shows the live curves of a run or a sweep in the terminal; Ctrl-C ends it."""

import argparse
import contextlib

from ablax.commands import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax watch`."""
    flags.add_workdir(parser, "the folder of a run, of a sweep, or of several")
    parser.add_argument(
        "--once", action="store_true", help="print the curves as they are now and stop"
    )
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between looks (default 2)"
    )


def run(args: argparse.Namespace) -> None:
    """Watches."""
    from ablax.watching import watch

    with contextlib.suppress(KeyboardInterrupt):
        watch(args.workdir, once=args.once, every=args.every)
