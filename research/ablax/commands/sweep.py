"""Runs every arm and seed of an experiment's get_sweep(); called again, it goes on.

Ctrl-C and SIGTERM let the cells that run save. Several calls may work on one folder at once, on one machine or many.
"""

import argparse
import contextlib
import sys
from typing import Any

from ablax.commands import flags, output
from ablax.commands.output import DONE, FAILED
from ablax.config import RequestError
from ablax.sweeps.launchers import LAUNCHERS, RETRIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax sweep`."""
    flags.add_config(parser)
    flags.add_workdir(parser, "the sweep's folder")
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="local",
        help="where cells run: a queue of processes on this machine (local, default), this process (inline), arrays of "
        "SLURM (slurm), tasks of a Ray cluster (ray)",
    )
    parser.add_argument(
        "--parallel",
        type=int,
        metavar="N",
        help="most cells at once (default: as fit on this machine, 1,000 on a cluster)",
    )
    parser.add_argument(
        "--cores_per_cell",
        type=int,
        metavar="N",
        help="cores of each cell (default: one; more on this machine if there are fewer cells than cores)",
    )
    parser.add_argument(
        "--gpus_per_cell",
        type=int,
        metavar="N",
        help="GPUs of each cell (default: one where there are any; under slurm none)",
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="slurm: an option of sbatch for each cell, such as partition=gpu, time=2:00:00 (default 24 hours), mem=16 "
        "(GB); may be repeated",
    )
    parser.add_argument(
        "--ray_address",
        metavar="ADDRESS",
        help="ray: the cluster's head, HOST:PORT (default: RAY_ADDRESS, or one on this machine)",
    )
    parser.add_argument(
        "--together",
        type=int,
        default=1,
        metavar="N",
        help="train up to N cells as one program, where they differ in seeds and in knobs that no program depends on "
        "(default 1: each by itself; on a CPU nothing is gained)",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=RETRIES,
        metavar="N",
        help="how often a cell is tried again that fails for a reason that may pass, and comes no further (default "
        f"{RETRIES})",
    )
    parser.add_argument("--metric", help="what arms are compared by, in place of the plan's")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="show every arm's differences, parameters, FLOPs, memory and disk, and train nothing",
    )
    flags.add_platform(parser)
    flags.add_offline(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the plan; the cells' statuses as JSON. 1 if a cell failed. A dry run prints what `preview` returns."""
    flags.go_offline(args.offline)
    from ablax.devices import choose_platform, ensure_accelerator
    from ablax.experiment import read_experiment, resolve
    from ablax.sweeps.launch import launch
    from ablax.sweeps.plan import plan_of
    from ablax.sweeps.screen import Screen

    extend = flags.extensions(args.extend)
    page = read_experiment(args.config)
    config = resolve(page.get_config(), args.overrides, extend=extend)
    if args.dry_run:
        # Shapes need no accelerator, and another run may hold it.
        choose_platform(args.platform or "cpu")
        _preview(args, config, page.get_sweep(), extend)
        return DONE
    plan = plan_of(page.get_sweep())
    inline = args.launcher == "inline"
    if inline:
        ensure_accelerator(args.platform)
    else:
        # Cells have processes of their own, and an accelerator should be free for them.
        choose_platform("cpu")
    launcher = None if inline else _launcher(args, len(plan.cells))
    screen = Screen(args.workdir, launcher.capacity if launcher else 1)
    shown = screen.shown() if launcher else contextlib.nullcontext()
    with contextlib.redirect_stdout(sys.stderr), shown:  # Ray talks on stdout, where results go
        done = launch(
            config,
            plan,
            args.workdir,
            launcher=launcher,
            metric=args.metric,
            name=args.config,
            extend=extend,
            extensions=args.extend,
            platform=args.platform,
            offline=args.offline,
            retries=args.retries,
            together=args.together,
            say=screen.say,
            show=screen.show,
        )
    output.emit({"workdir": str(done.workdir), "cells": dict(done.statuses), "failed": done.failed})
    return FAILED if done.failed else DONE


def _launcher(args: argparse.Namespace, cells: int) -> Any:
    for flag, launcher in (("slurm", "slurm"), ("ray_address", "ray")):
        if getattr(args, flag) and args.launcher != launcher:
            raise RequestError(f"--{flag} is for --launcher={launcher}; leave one of them out")
    if args.launcher == "local":
        from ablax.sweeps.local import Local, slots_of

        return Local(
            slots_of(cells, args.platform, args.cores_per_cell, args.gpus_per_cell, args.parallel)
        )
    for flag in ("cores_per_cell", "gpus_per_cell", "parallel"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise RequestError(f"--{flag}={value} must be at least 1")
    if args.launcher == "slurm":
        from ablax.sweeps.slurm_arrays import SlurmArrays, parameters_of

        own = {"cpus_per_task": args.cores_per_cell, "gpus_per_node": args.gpus_per_cell}
        own = {key: value for key, value in own.items() if value is not None}
        return SlurmArrays(args.workdir, {**own, **parameters_of(args.slurm)}, args.parallel)
    from ablax.sweeps.ray_tasks import RayTasks

    return RayTasks(
        args.ray_address, args.cores_per_cell or 1, args.gpus_per_cell, args.platform, args.parallel
    )


def _preview(args: argparse.Namespace, config: Any, plan: Any, extend: Any) -> None:
    from ablax.sweeps.preview import COLUMNS, preview

    found = preview(config, plan, args.workdir, extend=extend, offline=args.offline)
    output.emit(found)
    rows = [_row(arm) for arm in found["arms"]]
    trunks = [arm for arm in found["arms"] if arm["trunk"]]
    shared = sum(len(arm["seeds"]) * (arm["flops"] or 0) for arm in trunks)
    total = (
        f"{found['cells']} cells, {found['flops']:.3g} FLOPs in matrix products"
        + (f", {shared:.3g} of them in trunks, once" if trunks else "")
        + "; checkpoints take at most "
        f"{output.size(found['disk_bytes'])}, {output.size(found['free_bytes'])} are free"
    )
    output.table(args.config, COLUMNS, rows, [total])
    if not found["fits"]:
        raise RequestError(
            f"{args.workdir}: checkpoints may take {found['disk_bytes']:,} bytes and {found['free_bytes']:,} are free; "
            "lower checkpoint.keep, or choose a --workdir on another disk"
        )


def _row(arm: dict[str, Any]) -> tuple[Any, ...]:
    from ablax.history import outermost

    shown = [f"goes on from {arm['goes_on']}"] if arm["goes_on"] else []
    shown += [f"{path}={value}" for path, value in outermost(arm["changes"]).items()]
    known = arm["parameters"] is not None
    return (
        arm["arm"],
        len(arm["seeds"]),
        ", ".join(shown) or "-",
        f"{arm['parameters']:,}" if known else "-",
        f"{arm['flops']:.3g}" if known else "-",
        output.size(arm["memory_bytes"]) if known else "-",
        output.size(arm["disk_bytes"]) if known else "-",
    )
