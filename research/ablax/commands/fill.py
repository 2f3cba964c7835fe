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
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        help="a word that may stand there, in place of all; may be repeated",
    )
    parser.add_argument(
        "--stride",
        action="store_true",
        help="read around each mask of a text that is too long, in place of refusing it",
    )
    flags.add_step(parser)
    flags.add_platform(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> None:
    """Fills; JSON on stdout, the texts with their candidates on stderr."""
    from ablax.devices import ensure_accelerator
    from ablax.pipelines.pipeline import pipeline

    step, extend = flags.checkpoint_step(args.step), flags.extensions(args.extend)
    ensure_accelerator(args.platform)
    filler = pipeline(
        "fill-mask",
        args.workdir,
        step=step,
        extend=extend,
        trust_unverified=args.trust_unverified,
    )
    found = filler(
        args.text,
        top_k=args.top_k,
        targets=args.target or None,
        truncation="stride" if args.stride else False,
    )
    for text, filling in zip(args.text, found, strict=True):
        masks = filling if isinstance(filling[0], list) else [filling]
        output.passage("", filling[0]["sequence"] if masks[0] is filling else text)
        for candidates in masks:
            likely = ", ".join(f"{one['token_str']!r} {one['score']:.0%}" for one in candidates)
            output.say(f"[MASK]: {likely}")
    output.emit({"texts": args.text, "filled": found})
