"""Starts a run from another run's checkpoint, with some knobs changed; it keeps the data position and the rng."""

import argparse
import shlex

from ablax.commands import flags, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax fork`."""
    parser.add_argument(
        "source", metavar="RUN[@STEP]", help="the parent's folder, and its step (default: last)"
    )
    flags.add_workdir(parser, "the new run's folder")
    flags.add_extend(parser)
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> None:
    """Forks; what was made as JSON."""
    from ablax.folders import fork

    extend = flags.extensions(args.extend)
    output.emit(fork(args.source, args.workdir, args.overrides, extend=extend))
    changes = [f"--config.{path}={value}" for path, value in args.overrides.items()]
    again = shlex.join(["--config=FILE", f"--workdir={args.workdir}", *changes])
    output.say(f"FILE being the parent's experiment, go on with: ablax train {again}")
