"""Continues prompts with a trained model."""

import argparse
import sys

from ablax.commands import flags, output

SAMPLING = (
    ("top_k", int, "keep the k likeliest tokens"),
    ("top_p", float, "keep the likeliest tokens that have this probability together"),
    ("min_p", float, "drop tokens below this share of the likeliest one's probability"),
    ("typical_p", float, "keep the tokens of typical surprise that have this probability together"),
    ("repetition_penalty", float, "above 1 makes tokens that occurred less likely"),
    ("frequency_penalty", float, "subtracted from a token's logit each time it is generated"),
    ("presence_penalty", float, "subtracted from the logit of each token that was generated"),
    ("min_new_tokens", int, "tokens before which the text does not end"),
)
BEAMS = (
    ("num_beams", int, "search with so many continuations at once, in place of sampling"),
    ("length_penalty", float, "a search divides log-probabilities by length ** this (default 1)"),
)


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
        "--max_length", type=int, help="tokens of a prompt and its continuation at most"
    )
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token (default 1)")
    for name, kind, what in (*SAMPLING, *BEAMS):
        parser.add_argument(f"--{name}", type=kind, help=what)
    parser.add_argument(
        "--early_stopping",
        choices=("true", "false", "never"),
        help="a search ends with num_beams texts (true), once no better one is likely (false, the default) or possible",
    )
    parser.add_argument(
        "--logit_bias",
        action="append",
        type=token_bias,
        default=[],
        metavar="ID=NUMBER",
        help="added to the logit of a token id; may be repeated",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        help="a text that ends a continuation; may be repeated",
    )
    parser.add_argument(
        "--stop_token",
        action="append",
        type=int,
        default=[],
        metavar="ID",
        help="a token id that ends a continuation; may be repeated",
    )
    parser.add_argument(
        "--num_return_sequences", type=int, default=1, help="continuations per prompt (default 1)"
    )
    parser.add_argument(
        "--alternatives",
        type=int,
        default=0,
        help="tell as many likeliest tokens at each place, with their log-probabilities",
    )
    parser.add_argument(
        "--echo", action="store_true", help="tell the log-probabilities of the prompt's tokens too"
    )
    parser.add_argument(
        "--cache_dtype",
        choices=("float32", "bfloat16"),
        help="of a Transformer's keys and values (default: the model's)",
    )
    parser.add_argument(
        "--truncation",
        action="store_true",
        help="drop the oldest tokens of a prompt that is too long, in place of refusing it",
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="say the text of one prompt on stderr while it is made",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default 0)")
    flags.add_step(parser)
    flags.add_platform(parser)
    flags.add_extend(parser)


def token_bias(text: str) -> tuple[int, float]:
    """`ID=NUMBER`."""
    token, _, bias = text.partition("=")
    return int(token), float(bias)


class Talk:
    """A streamer that says a text on stderr while it is made."""

    def put(self, text: str) -> None:
        """A piece of it."""
        print(text, end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """There is no more."""
        print(file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> None:
    """Generates; JSON on stdout, the texts on stderr."""
    from ablax.devices import ensure_accelerator
    from ablax.pipelines.pipeline import pipeline

    step, extend = flags.checkpoint_step(args.step), flags.extensions(args.extend)
    ensure_accelerator(args.platform)
    names = ("temperature", *(name for name, _, _ in (*SAMPLING, *BEAMS)))
    options = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.early_stopping is not None:
        options["early_stopping"] = {"true": True, "false": False}.get(args.early_stopping, "never")
    drawn = args.temperature != 0 and args.num_beams in (None, 1)
    generator = pipeline(
        "text-generation",
        args.workdir,
        step=step,
        extend=extend,
        trust_unverified=args.trust_unverified,
    )
    found = generator.complete(
        args.prompt,
        streamer=Talk() if args.stream else None,
        do_sample=True if drawn else None,
        max_new_tokens=args.max_new_tokens,
        max_length=args.max_length,
        truncation=args.truncation,
        num_return_sequences=args.num_return_sequences,
        seed=args.seed,
        stop_strings=args.stop,
        eos_token_id=args.stop_token,
        logit_bias=dict(args.logit_bias),
        alternatives=args.alternatives,
        echo=args.echo,
        cache_dtype=args.cache_dtype,
        **options,
    )
    for prompt, completions in zip(args.prompt, found, strict=True):
        for completion in () if args.stream else completions:
            output.passage(prompt, completion.text)
    output.emit({"prompts": args.prompt, "completions": found})
