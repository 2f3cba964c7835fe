"""Scores a trained model on a split: totals as JSON, per-document sums beside them in the run folder.

--config.evaluation.stride=32 and the like change how it is measured.
"""

import argparse

from ablax.commands import flags, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax evaluate`."""
    flags.add_workdir(parser)
    parser.add_argument(
        "--split", help="validation, test or train; default: the one measured during training"
    )
    parser.set_defaults(takes_overrides=True)
    flags.add_step(parser)
    flags.add_platform(parser)
    flags.add_offline(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluates; JSON on stdout, a table on stderr."""
    flags.go_offline(args.offline)
    from ablax.devices import ensure_accelerator
    from ablax.folders import evaluate

    step, extend = flags.checkpoint_step(args.step), flags.extensions(args.extend)
    ensure_accelerator(args.platform)
    found = evaluate(
        args.workdir,
        args.split,
        step,
        overrides=args.overrides,
        extend=extend,
        trust_unverified=args.trust_unverified,
        offline=args.offline,
    )
    output.emit(found)
    rows = [(name, value) for name, value in found.items() if isinstance(value, (int, float, str))]
    output.table(f"{args.workdir}, {found['split']}", ("metric", "value"), rows)
