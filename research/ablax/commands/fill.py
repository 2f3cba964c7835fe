"""Fills the [MASK]s of a text with a masked model."""

import argparse

from ablax.commands import flags, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax fill`."""
    flags.add_workdir(parser)
    parser.add_argument(
        "--text", action="append", required=True, help="text with [MASK]s; may be repeated"
    )
    parser.add_argument("--top_k", type=int, default=5, help="candidates per mask (default 5)")
    flags.add_step(parser)
    flags.add_platform(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> None:
    """Fills; JSON on stdout, the texts with their candidates on stderr."""
    from ablax.devices import ensure_accelerator
    from ablax.model import load

    step, extend = flags.checkpoint_step(args.step), flags.extensions(args.extend)
    ensure_accelerator(args.platform)
    model = load(args.workdir, step=step, extend=extend, trust_unverified=args.trust_unverified)
    found = model.fill(args.text, top_k=args.top_k)
    for filling in found:
        output.passage("", filling.text)
        for candidates in filling.candidates:
            likely = ", ".join(f"{text!r} {share:.0%}" for text, share in candidates)
            output.say(f"[MASK]: {likely}")
    output.emit({"texts": args.text, "filled": found})
