"""Runs one cell of a sweep; launchers call it. 3 if another process runs the cell."""

import argparse
import ctypes
import os
import signal
import sys

from ablax.commands import flags
from ablax.commands.output import DONE, FAILED, PREEMPTED, TAKEN, say
from ablax.config import RequestError

SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl(2)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax cell`."""
    flags.add_workdir(parser, "the sweep's folder")
    parser.add_argument("--cell", required=True, metavar="ARM/SEED", help="the cell's folder in it")
    parser.add_argument(
        "--mate",
        action="append",
        default=[],
        metavar="ARM/SEED",
        help="another cell, to train with it as one program if nobody runs it; may be repeated",
    )
    parser.add_argument("--cores", metavar="N,M", help="the cores that it may use")
    parser.add_argument(
        "--parent", type=int, metavar="PID", help="save and end if this process, its parent, ends"
    )
    flags.add_platform(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the cell; its record says what became of it."""
    if args.cores:
        os.sched_setaffinity(0, cores_of(args.cores))
    if args.parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != args.parent:  # it ended before it could be watched
            return PREEMPTED
    from ablax.devices import ensure_accelerator
    from ablax.sweeps.worker import Taken, run_named

    sys.path.append(os.getcwd())  # behind the code that the sweep kept
    ensure_accelerator(args.platform)
    try:
        extend = flags.extensions(args.extend)
        record = run_named(args.workdir, args.cell, args.mate, extend=extend, say=say)
    except Taken as error:
        say(str(error))
        return TAKEN
    if record["status"] != "failed":  # it may have paused, for the controller to say what then
        return DONE
    say(f"{args.cell} failed: {record['error']}")
    sys.stderr.writelines(record["traceback"])
    return FAILED


def cores_of(text: str) -> set[int]:
    """The numbers of a list such as `0,1`.

    Raises:
      RequestError: if it is none.
    """
    try:
        return {int(core) for core in text.split(",")}
    except ValueError:
        raise RequestError(f"--cores={text} must be numbers with commas, such as 0,1") from None
