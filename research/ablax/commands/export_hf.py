"""Writes a run's model as a checkpoint that transformers loads."""

import argparse
from pathlib import Path

from ablax.commands import flags, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax export-hf`."""
    flags.add_workdir(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the new folder")
    parser.add_argument(
        "--family",
        metavar="NAME",
        help="model_type to write (default: as it was imported, else the first that fits)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the tensors (default: as they were imported, else float32)",
    )
    flags.add_step(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> None:
    """Exports; what was written as JSON."""
    from ablax.interop.exporting import export_hf

    found = export_hf(
        args.workdir,
        args.out,
        step=flags.checkpoint_step(args.step),
        family=args.family,
        dtype=args.dtype,
        trust_unverified=args.trust_unverified,
        extend=flags.extensions(args.extend),
    )
    if "tokenizer.json" not in found["files"]:
        output.say("the run's tokenizer is Ablax's own, and transformers cannot read it: left out")
    output.emit(found)
