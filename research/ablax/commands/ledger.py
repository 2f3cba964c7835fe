"""Shows what data a run saw, or compares two runs: exit code 0 if every batch was the same, else 1."""

import argparse
from pathlib import Path

from ablax.commands import output
from ablax.commands.output import DONE, FAILED
from ablax.config import RequestError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax ledger`."""
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar="RUN",
        help="folders of two runs whose batches are compared",
    )
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="the folder of one run to show")
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="with --workdir: hash and documents of this step, from 1",
    )


def run(args: argparse.Namespace) -> int:
    """Shows or compares; JSON on stdout, one line on stderr."""
    from ablax.training.recorded import compare_ledgers, read_ledger

    if (args.compare is None) == (args.workdir is None):
        raise RequestError("give --workdir=RUN to show a ledger, or --compare RUN RUN")
    if args.compare:
        if args.step is not None:
            raise RequestError("--step belongs to --workdir; leave it out of a comparison")
        found = compare_ledgers(*args.compare)
        output.emit(found)
        output.say(str(found))
        return DONE if found.same else FAILED
    ledger = read_ledger(args.workdir)
    shown = {"steps": len(ledger), "digest": ledger.digest()}
    if args.step is not None:
        documents = ledger.documents(args.step)
        shown = {
            "step": args.step,
            "hash": ledger.hashes[args.step - 1].hex(),
            "documents": documents,
        }
    output.emit(shown)
    return DONE
