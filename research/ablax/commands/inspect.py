"""Shows what an experiment will be: configuration, parameters, FLOPs per token, memory, lengths in steps, sharding.

--batch=N prints N decoded batches: token text over target text, counted targets in green, padding dim.
--knobs prints every knob with its default, its mark and what it does. --layers prints every layer's output shape.
Nothing is trained and no model is built in memory.
"""

import argparse
from typing import Any

from ablax.commands import flags, output
from ablax.config import RequestError

PADDING_STYLE, SEGMENT_STYLES = "dim", ("cyan", "magenta", "yellow", "blue")
MOST_ROWS = 8
KNOB_COLUMNS = ("knob", "value", "default", "mark", "doc")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax inspect`."""
    flags.add_config(parser)
    parser.add_argument("--batch", type=int, default=0, metavar="N", help="show N decoded batches")
    parser.add_argument(
        "--layers", action="store_true", help="show the output shape of every layer"
    )
    parser.add_argument(
        "--knobs",
        action="store_true",
        help="show every knob with its default and what it does, and stop",
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS:N,...",
        help="memory and sharding of each device of a mesh, as data:8,fsdp:16; no devices are needed",
    )
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="compile the step for TPUs that are not here, as v5e:16x16: memory, collectives, whether it fits",
    )
    flags.add_platform(parser)
    flags.add_offline(parser)
    flags.add_extend(parser)


def run(args: argparse.Namespace) -> None:
    """Inspects; JSON on stdout, tables on stderr."""
    flags.go_offline(args.offline)
    from ablax import inspection
    from ablax.devices import choose_platform
    from ablax.experiment import resolve
    from ablax.listing import knobs
    from ablax.topology import compile_for

    # Shapes need no accelerator, and another run may hold it.
    choose_platform(args.platform or "cpu")
    if args.batch < 0:
        raise RequestError(f"--batch={args.batch} must be 0 or more")
    experiment = flags.resolved(args.config, args.overrides, flags.extensions(args.extend))
    sizes = mesh_sizes(args.mesh) if args.mesh else None
    if sizes:
        experiment = resolve(experiment, {f"parallel.{axis}": n for axis, n in sizes.items()})
    if args.knobs:
        found = knobs(experiment)
        output.emit(found)
        rows = [[str(row[name]) for name in KNOB_COLUMNS] for row in found]
        output.table(args.config, KNOB_COLUMNS, rows)
        return
    corpus = None
    if args.batch > 0 or inspection.needs_data(experiment):
        corpus = inspection.corpus_of(experiment, args.offline)
    compiled = compile_for(experiment, corpus, args.topology) if args.topology else None
    if compiled:
        sizes = {axis: compiled["mesh"].get(axis, 1) for axis in mesh_sizes("data:1")}
    found = inspection.inspect(
        experiment,
        corpus,
        count=args.batch,
        shapes=args.layers,
        sizes=sizes,
        platform="tpu" if compiled else None,
    )
    if compiled:
        found["compiled"] = compiled
    output.emit(found)
    _tables(args.config, found, "memory of each device" if sizes else "memory")


def _tables(title: str, found: dict[str, Any], memory: str) -> None:
    output.table(title, ("knob", "value"), [(k, str(v)) for k, v in found["config"].items()])
    if found["durations"]:
        output.table("Lengths", ("knob", "steps"), found["durations"].items())
    if found["parameters"] is None:
        output.say(f"no parameters to show: {found['why']}")
    else:
        table = found["parameters"]["table"]
        rows = [(k, str(v["shape"]), v["partition"]) for k, v in table.items()]
        output.table("Parameters", ("parameter", "shape", "partition"), rows)
        cost = [(f"parameters: {k}", found["parameters"][k]) for k in ("total", "active")]
        cost += [("vocabulary", found["vocabulary"])]
        cost += [(f"FLOPs: {k.replace('_', ' ')}", v) for k, v in found["flops"].items()]
        cost += [(f"{memory}: {k}", output.size(v)) for k, v in found["memory"].items()]
        if kernel := found.get("attention_kernel"):
            keeps = ", which keeps its probabilities; cudnn and splash do not" * (
                kernel == "reference"
            )
            cost += [(f"{memory}: attention kernel assumed", kernel + keeps)]
        output.table("Cost", ("what", "how much"), cost)
    if "compiled" in found:
        output.table(
            f"Compiled for {found['compiled']['topology']}",
            ("what", "how much"),
            _account(found["compiled"]),
        )
    if "layers" in found:
        rows = [
            (r["layer"], str(r["shape"]), r["dtype"], output.size(r["bytes"]))
            for r in found["layers"]
        ]
        output.table("Layers", ("layer", "output", "dtype", "size"), rows)
    for step, batch in enumerate(found.get("batches", [])):
        _show_batch(step, batch)


def mesh_sizes(text: str) -> dict[str, int]:
    """Axis -> devices of `data:8,fsdp:16`; axes that are not named have one.

    Raises:
      RequestError: if it is not of this form.
    """
    from ablax.training.sharding import AXES

    sizes: dict[str, int] = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        axis, _, number = part.partition(":")
        if axis not in sizes or not number.isdecimal() or int(number) < 1:
            raise RequestError(
                f"--mesh={text}: {part!r} is not AXIS:N with one of {', '.join(AXES)} and N of at least 1"
            )
        sizes[axis] = int(number)
    return sizes


def _account(compiled: dict[str, Any]) -> list[tuple[str, str]]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in compiled["mesh"].items())
    rows = [("devices", f"{compiled['devices']} ({mesh or 'one'})")]
    if not compiled["fits"]:
        return [*rows, ("does not fit", compiled["why"])]
    if "attention_kernel" in compiled:
        rows.append(("attention kernel", compiled["attention_kernel"]))
    rows += [(f"memory of each device: {k}", output.size(v)) for k, v in compiled["memory"].items()]
    return rows + [
        (k, f"{v['count']}, {output.size(v['bytes'])}") for k, v in compiled["collectives"].items()
    ]


def _visible(text: str) -> str:
    return text.replace("\n", "\u23ce").replace("\t", "\u21e5").replace("\r", "\u240d")


def _show_batch(step: int, batch: Any) -> None:
    """Rows of a batch in colour: one colour per segment, targets that count underlined below."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(
        f"batch of step {step}: {len(batch)} rows of {len(batch[0])} tokens", style="bold"
    )
    for number, row in enumerate(batch[:MOST_ROWS]):
        inputs, targets = Text(f"{number} in  "), Text(f"{number} out ")
        for token in row:
            color = SEGMENT_STYLES[(token.segment - 1) % len(SEGMENT_STYLES)]
            inputs.append(_visible(token.text), PADDING_STYLE if token.segment == 0 else color)
            targets.append(_visible(token.target), "green" if token.weight > 0 else PADDING_STYLE)
            inputs.append("|", PADDING_STYLE)
            targets.append("|", PADDING_STYLE)
        console.print(inputs)
        console.print(targets)
    if len(batch) > MOST_ROWS:
        console.print(
            f"... and {len(batch) - MOST_ROWS} more rows, in the JSON on stdout", style="dim"
        )
