"""Trains an experiment in a run folder, or resumes what is there; says so if the run is finished.

SIGTERM and SIGUSR1 save and exit with 75, Ctrl-C saves and exits with 130: the same command goes on. A second signal
ends it at once.
"""

import argparse
from typing import Any

from ablax.commands import flags, output
from ablax.commands.output import DONE, INTERRUPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax train`."""
    flags.add_config(parser)
    flags.add_workdir(parser)
    parser.add_argument(
        "--fresh", action="store_true", help="move what is in the folder aside and start over"
    )
    parser.add_argument(
        "--debug", action="store_true", help="overfit one batch with the NaN trap on"
    )
    parser.add_argument(
        "--profile",
        metavar="N:M",
        help="write a JAX trace of steps N to M into the folder's profile/",
    )
    flags.add_platform(parser)
    flags.add_cluster(parser)
    flags.add_offline(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> int:
    """Trains, then prints where the run lies, its last evaluation and what it cost."""
    flags.go_offline(args.offline)
    from ablax import cluster, distributed
    from ablax.devices import ensure_accelerator
    from ablax.trainer import train
    from ablax.training.profile import steps_of

    profile = steps_of(args.profile) if args.profile else None
    extend = flags.extensions(args.extend)
    resolved = flags.resolved(args.config, args.overrides, extend)
    place = cluster.find(args.coordinator, args.process_id, args.process_count)
    distributed.start(place, resolved.heartbeat.silence, args.start_timeout)
    ensure_accelerator(args.platform)
    done: Any = train(
        resolved,
        args.workdir,
        extend=extend,
        fresh=args.fresh,
        debug=args.debug,
        offline=args.offline,
        profile=profile,
    )
    if distributed.ranks().first:
        output.emit(done)
    return DONE if args.debug or done.finished else INTERRUPTED
