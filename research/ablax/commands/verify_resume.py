"""Proves on this machine that a killed run goes on as if never stopped: trains, kills with SIGKILL, resumes, compares.

Writes a receipt (verify-resume.json) beside the runs; exit code 0 if they are equal, else 1 with the first difference.
On a GPU without --deterministic, equal means: within the noise of two undisturbed runs, which is measured.
"""

import argparse
import tempfile
from pathlib import Path

from ablax.commands import flags, output
from ablax.commands.output import DONE, FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax verify-resume`."""
    flags.add_config(parser)
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="takes the runs and the receipt; must be empty or new (default: a temporary folder that is kept)",
    )
    parser.add_argument(
        "--kill-step", type=int, metavar="N", help="kill at this step (default: in the middle)"
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU: deterministic programs, so that equal means equal bits; prints what they cost",
    )
    flags.add_platform(parser)
    flags.add_offline(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> int:
    """Verifies; the receipt on stdout, one line on stderr."""
    from ablax.verification import RECEIPT, verify_resume

    # What can be refused is refused before a process is started.
    flags.resolved(args.config, args.overrides, flags.extensions(args.extend))
    arguments = [f"--config={args.config}"]
    arguments += [f"--config.{path}={value}" for path, value in args.overrides.items()]
    arguments += [f"--platform={args.platform}"] if args.platform else []
    arguments += ["--offline"] if args.offline else []
    arguments += [f"--extend={name}" for name in args.extend]
    workdir = args.workdir or Path(tempfile.mkdtemp(prefix="ablax-verify-resume-"))
    receipt = verify_resume(
        arguments,
        workdir,
        kill_step=args.kill_step,
        deterministic=args.deterministic,
        say=output.say,
    )
    output.emit(receipt)
    difference = receipt["first_difference"]
    output.say(
        f"{receipt['verdict']}{f', first in {difference}' if difference else ''}: {workdir / RECEIPT}"
    )
    return FAILED if receipt["verdict"] == "different" else DONE
