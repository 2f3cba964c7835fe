"""Continues prompts with a trained model."""

import argparse

from ablax.commands import flags, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax generate`."""
    flags.add_workdir(parser)
    parser.add_argument(
        "--prompt", action="append", required=True, help="text to continue; may be repeated"
    )
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        help="tokens per continuation at most (default: as many as fit behind the longest prompt, 64 at most)",
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="0 takes the likeliest token (default 1)"
    )
    parser.add_argument("--top_k", type=int, help="keep the k likeliest tokens")
    parser.add_argument(
        "--top_p", type=float, help="keep the likeliest tokens that have this probability together"
    )
    parser.add_argument(
        "--min_p",
        type=float,
        help="drop tokens below this share of the likeliest one's probability",
    )
    parser.add_argument(
        "--repetition_penalty", type=float, help="above 1 makes tokens that occurred less likely"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        help="a text that ends a continuation; may be repeated",
    )
    parser.add_argument(
        "--num_return_sequences", type=int, default=1, help="continuations per prompt (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default 0)")
    flags.add_step(parser)
    flags.add_platform(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> None:
    """Generates; JSON on stdout, the texts on stderr."""
    from ablax.devices import ensure_accelerator
    from ablax.model import load

    step, extend = flags.checkpoint_step(args.step), flags.extensions(args.extend)
    ensure_accelerator(args.platform)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    sampling = {name: value for name in names if (value := getattr(args, name)) is not None}
    model = load(args.workdir, step=step, extend=extend, trust_unverified=args.trust_unverified)
    found = model.generate(
        args.prompt,
        max_new_tokens=args.max_new_tokens,
        num_return_sequences=args.num_return_sequences,
        seed=args.seed,
        stop=args.stop,
        **sampling,
    )
    for prompt, completions in zip(args.prompt, found, strict=True):
        for completion in completions:
            output.passage(prompt, completion.text)
    output.emit({"prompts": args.prompt, "completions": found})
