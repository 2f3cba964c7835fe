"""The `ablax` command: finds the command, splits off `--config.*`, turns exceptions into exit codes.

Results go to stdout as JSON, talk goes to stderr. Exit code 0 = done, 1 = the run failed, 2 = the request was wrong,
75 = preempted and saved, run again, 130 = interrupted. A command's module is imported only when it is called, so that
`ablax --help` imports neither JAX nor anything else that is slow.
"""

import argparse
import difflib
import importlib
import os
import re
import sys
import threading
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from ablax.commands.output import DONE, FAILED, INTERRUPTED, PREEMPTED, REFUSED, say

COMMANDS = {
    "train": "train an experiment, or resume it",
    "evaluate": "score a trained model on a split",
    "generate": "continue prompts with a trained model",
    "fill": "fill the [MASK]s of a text with a masked model",
    "chat": "talk with a trained model in the terminal",
    "inspect": "show configuration, size, cost, memory, batches and layers without training",
    "prepare": "download, tokenise and verify the data of an experiment",
    "doctor": "check the accelerator, its driver, the libraries, the disk and the caches",
    "watch": "show the live curves of a run or a sweep in the terminal",
    "sweep": "run the arms and seeds of an experiment's plan",
    "cell": "run one cell of a sweep; launchers call it",
    "report": "compare the arms of a sweep",
    "runs": "list the runs under a folder",
    "diff": "show what differs between two runs: knobs, code, data, results",
    "forensics": "make a step again: its documents, losses, gradients, and where the first NaN arose",
    "ledger": "show the batches that a run saw, or compare those of two runs",
    "verify-resume": "train, kill, resume, and compare with the run undisturbed",
    "fork": "start a run from another run's checkpoint",
    "import-hf": "make a run folder of a pretrained model of Hugging Face",
    "export-hf": "write a run's model as a checkpoint that transformers loads",
    "new": "write a project of your own: a model, its experiment and its test",
}


# How long a process that was asked to end waits for its threads.
LINGER_SECONDS = 5.0


class Usage(Exception):
    """The command line itself is wrong."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises `Usage` with one line instead of printing its usage and exiting."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Raises `Usage`; an unknown flag gets the nearest one that exists."""
        if unknown := re.search(r"unrecognized arguments: (\S+)", message):
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            message = (
                f"unknown argument {unknown[1]!r}{_nearest(unknown[1].partition('=')[0], flags)}"
            )
        raise Usage(f"{message}; see {self.prog} --help")


def _nearest(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def command_module(name: str) -> ModuleType:
    """The module of a command: `add_arguments(parser)` and `run(args) -> exit code or None`."""
    return importlib.import_module(f"ablax.commands.{name.replace('-', '_')}")


def top_parser() -> Parser:
    """The parser of `ablax` itself, which knows the commands by name only."""
    lines = [f"  {name:<13} {summary}" for name, summary in COMMANDS.items()]
    parser = Parser(
        prog="ablax",
        description="Language models and their ablations in JAX.",
        epilog="commands:\n" + "\n".join(lines) + "\n\nablax COMMAND --help explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version of Ablax")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the commands below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def dispatch(argv: Sequence[str], own_process: bool = False) -> int:
    """Parses the command line and runs its command.

    Args:
      own_process: whether the process is the command's own, so that it may tune the allocator.

    Raises:
      Usage, RequestError: if the request is wrong; whatever the command raises otherwise.
    """
    top = top_parser()
    args = top.parse_args(argv[:1])
    if args.version:
        from importlib.metadata import version

        print(version("ablax"))
        return DONE
    if args.command is None:
        top.print_help(sys.stderr)
        return REFUSED
    if args.command not in COMMANDS:
        near = _nearest(args.command, list(COMMANDS)) or f"; there are: {', '.join(COMMANDS)}"
        raise Usage(f"unknown command {args.command!r}{near}")
    return run_command(args.command, argv[1:], own_process)


def run_command(name: str, argv: Sequence[str], own_process: bool = False) -> int:
    """Runs one command with its arguments; `--config.*` reach it as `args.overrides`."""
    from ablax.allocator import tune_malloc
    from ablax.config import RequestError, split_overrides

    module = command_module(name)
    parser = Parser(prog=f"ablax {name}", description=module.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.add_arguments(parser)
    rest, overrides = split_overrides(argv)
    known = parser.parse_args(rest)
    if overrides and not getattr(known, "takes_overrides", False):
        raise RequestError(
            f"ablax {name} takes no --config.* overrides; remove --config.{next(iter(overrides))}"
        )
    known.overrides = overrides
    if platform := getattr(known, "platform", None):
        os.environ["JAX_PLATFORMS"] = platform
    if own_process and hasattr(known, "platform"):
        tune_malloc()
    return module.run(known) or DONE


def failure(error: BaseException) -> int:
    """Says on stderr what went wrong and returns the exit code that it means."""
    from ablax.config import RequestError
    from ablax.run import Preempted, RunFailed

    if isinstance(error, (RequestError, Usage)):
        say(" ".join(str(error).split("\n")))
        return REFUSED
    if isinstance(error, Preempted):
        say(str(error))
        return PREEMPTED
    if isinstance(error, RunFailed):
        say(str(error))
        return FAILED
    if isinstance(error, KeyboardInterrupt):
        say("interrupted")
        return INTERRUPTED
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        from ablax.devices import out_of_memory

        say(out_of_memory(error))
        return FAILED
    traceback.print_exception(error)
    return FAILED


def ending(code: int, own_process: bool) -> int:
    """The code; a process that was asked to end also ends if one of its threads waits for a batch that never comes."""
    if own_process and code in (PREEMPTED, INTERRUPTED):
        timer = threading.Timer(LINGER_SECONDS, os._exit, (code,))
        timer.daemon = True
        timer.start()
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `ablax` with these arguments (default: the process's own) and returns its exit code."""
    own_process, argv = argv is None, list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            code = dispatch(argv, own_process)
        except SystemExit as stop:  # argparse has printed its help, or its complaint
            code = (
                stop.code if isinstance(stop.code, int) else DONE if stop.code is None else FAILED
            )
        sys.stdout.flush()
        return ending(code, own_process)
    except BrokenPipeError:
        # The reader of our output (`| head`) went away: nothing is wrong, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except BaseException as error:
        code = failure(error)
        if own_process and (together := sys.modules.get("ablax.distributed")):
            together.leave(error, code)
        return ending(code, own_process)


if __name__ == "__main__":
    sys.exit(main())
