"""Flags that several commands share, and what they mean."""

import argparse
import dataclasses
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablax.config import RequestError, import_class


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config=FILE[:ARG]` with `--config.a.b=v` overrides."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="experiment file, or ablax:pretrain/decoder for a shipped one; ARG goes to its get_config. "
        "--config.model.num_layers=6 changes one knob",
    )
    parser.set_defaults(takes_overrides=True)


def add_workdir(parser: argparse.ArgumentParser, what: str = "the run's folder") -> None:
    """`--workdir=DIR`."""
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help=what)


def add_platform(parser: argparse.ArgumentParser) -> None:
    """`--platform=cpu|cuda|tpu`."""
    parser.add_argument(
        "--platform",
        choices=("cpu", "cuda", "tpu"),
        help="the devices to use; without it the accelerator if there is one, never the CPU in its place",
    )


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """`--coordinator`, `--process-id`, `--process-count`, `--start-timeout`."""
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0 of several; launchers are asked for it, or ABLAX_COORDINATOR",
    )
    parser.add_argument(
        "--process-id", type=int, metavar="N", help="this process, from 0; or ABLAX_PROCESS_ID"
    )
    parser.add_argument(
        "--process-count", type=int, metavar="N", help="all processes; or ABLAX_PROCESS_COUNT"
    )
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long to wait for the other processes (default 300)",
    )


def add_offline(parser: argparse.ArgumentParser) -> None:
    """`--offline`."""
    parser.add_argument(
        "--offline", action="store_true", help="forbid the network: the data must be prepared"
    )


def add_extend(parser: argparse.ArgumentParser) -> None:
    """`--extend=MODULE[:NAME]`."""
    parser.add_argument(
        "--extend",
        action="append",
        default=[],
        metavar="MODULE[:NAME]",
        help="a config class of your own that names in the configuration may mean (all in MODULE without NAME)",
    )


def add_step(parser: argparse.ArgumentParser) -> None:
    """`--step=best|last|N`, and whether a checkpoint that nobody can verify is read."""
    parser.add_argument(
        "--step", default="best", metavar="N", help="checkpoint: best (default), last or a step"
    )
    parser.add_argument(
        "--trust_unverified",
        action="store_true",
        help="read weights although the manifest that tells whether they are whole is missing",
    )


def checkpoint_step(text: str) -> "int | str":
    """`best`, `last` or a step's number.

    Raises:
      RequestError: if it is none of these.
    """
    if text in ("best", "last"):
        return text
    if text.isdecimal():
        return int(text)
    raise RequestError(f"--step={text} must be best, last or the number of a step")


def extensions(names: Sequence[str]) -> list[Any]:
    """The config classes that `--extend` names. The current folder is importable, as with `python -m`.

    Raises:
      RequestError: if a module or class does not exist, or a module has no config class.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: list[Any] = []
    for name in names:
        if ":" in name:
            found.append(import_class(name))
            continue
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise RequestError(
                f"--extend={name}: {error}; is it installed, or in this folder?"
            ) from error
        own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == name]
        classes = [c for c in own if dataclasses.is_dataclass(c) and hasattr(c, "build")]
        if not classes:
            raise RequestError(
                f"--extend={name}: no dataclass with a `build` method in it; write one"
            )
        found += classes
    return found


def go_offline(offline: bool) -> None:
    """Makes the libraries that could reach for the network raise instead."""
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


def resolved(spec: str, overrides: Mapping[str, str], extend: Sequence[Any] = ()) -> Any:
    """The validated experiment that `--config` and its overrides mean.

    Raises:
      RequestError: if the file, a knob or a value is wrong.
    """
    from ablax.experiment import read_experiment, resolve

    return resolve(read_experiment(spec).get_config(), overrides, extend=extend)
