"""Runs every arm and seed of an experiment's get_sweep(), one after another; called again, it goes on."""

import argparse

from ablax.commands import flags, output
from ablax.commands.output import DONE, FAILED, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax sweep`."""
    flags.add_config(parser)
    flags.add_workdir(parser, "the sweep's folder")
    parser.add_argument(
        "--launcher", choices=("local",), default="local", help="where cells run (default local)"
    )
    parser.add_argument(
        "--metric",
        default="bits_per_byte",
        help="what arms are compared by (default bits_per_byte)",
    )
    flags.add_platform(parser)
    flags.add_offline(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the plan; the cells' statuses as JSON. 1 if a cell failed."""
    flags.go_offline(args.offline)
    from ablax.devices import ensure_accelerator
    from ablax.experiment import read_experiment, resolve
    from ablax.sweeps.launch import launch

    extend = flags.extensions(args.extend)
    page = read_experiment(args.config)
    config = resolve(page.get_config(), args.overrides, extend=extend)
    ensure_accelerator(args.platform)
    done = launch(
        config,
        page.get_sweep(),
        args.workdir,
        metric=args.metric,
        name=args.config,
        extend=extend,
        offline=args.offline,
        say=say,
    )
    output.emit({"workdir": str(done.workdir), "cells": dict(done.statuses), "failed": done.failed})
    return FAILED if done.failed else DONE
