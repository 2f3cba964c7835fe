"""Downloads, tokenises and verifies the data of an experiment, so that --offline works afterwards."""

import argparse

from ablax.commands import flags, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax prepare`."""
    flags.add_config(parser)
    flags.add_offline(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> None:
    """Prepares; what lies where as JSON. Uses no accelerator: login nodes have none."""
    flags.go_offline(args.offline)
    from ablax.data.progress import told
    from ablax.devices import choose_platform
    from ablax.folders import prepare

    choose_platform("cpu")
    extend = flags.extensions(args.extend)
    resolved = flags.resolved(args.config, args.overrides, extend)
    report = told(output.say)
    output.emit(prepare(resolved, extend=extend, offline=args.offline, progress=report))
