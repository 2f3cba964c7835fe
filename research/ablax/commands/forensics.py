"""Makes a step of a run again: documents, loss of each row, gradient of each layer, and where the first NaN arose."""

import argparse

from ablax.commands import flags, output

SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax forensics`."""
    flags.add_workdir(parser)
    parser.add_argument(
        "--step",
        required=True,
        type=int,
        metavar="N",
        help="the step, from 1: one that was refused, or any other",
    )
    flags.add_platform(parser)
    flags.add_offline(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> None:
    """Looks; JSON on stdout, tables on stderr."""
    flags.go_offline(args.offline)
    from ablax.devices import ensure_accelerator
    from ablax.forensics import forensics

    extend = flags.extensions(args.extend)
    ensure_accelerator(args.platform)
    found = forensics(args.workdir, args.step, extend=extend, offline=args.offline, say=output.say)
    output.emit(found)
    rows = [
        (
            ", ".join(row["documents"][:3]) + (" ..." if len(row["documents"]) > 3 else ""),
            row["row"],
            row["loss"],
        )
        for row in found["rows"][:SHOWN]
    ]
    output.table(f"rows of step {args.step}, worst first", ("documents", "row", "loss"), rows)
    layers = [(row["layer"], row["gradient_norm"]) for row in found["layers"]]
    notes = [
        f"loss {found['loss']:.6g}, gradient norm {found['gradient_norm']:.6g}, from checkpoint {found['checkpoint']}",
        f"refused: {found['refused'] or 'no'}; first not finite: {found['first_not_finite'] or 'nothing'}",
    ]
    output.table("gradient norms", ("layer", "norm"), layers, notes)
