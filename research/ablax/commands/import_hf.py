"""Makes a run folder of a pretrained model of Hugging Face: GPT-2, GPT-NeoX, Llama, Mistral, Qwen, BERT, RoBERTa."""

import argparse

from ablax.commands import flags, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax import-hf`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder with config.json and safetensors, or a name on the hub (gpt2, OWNER/NAME)",
    )
    flags.add_workdir(parser, "the new run's folder")
    parser.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit on the hub (default: main)"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="file or folder of the tokenizer (default: the checkpoint's own)",
    )
    flags.add_offline(parser)
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> None:
    """Imports; what was made as JSON."""
    flags.go_offline(args.offline)
    from ablax.interop.importing import import_hf

    found = import_hf(
        args.source,
        args.workdir,
        args.overrides,
        revision=args.revision,
        tokenizer=args.tokenizer,
        say=output.say,
    )
    for name, why in found["dropped"].items():
        output.say(f"{name} is left out: {why}")
    output.emit(found)
    output.say(f"train on with: ablax train --config={args.workdir}/experiment.py --workdir=NEW")
