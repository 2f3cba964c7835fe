"""Every measurement in one command: a table on stderr, JSON on stdout.

  scripts/benchmarks/run [--only=step,loader] [--quick] [--data=FOLDER] [--json=FILE]

step         our loop against its bare program, a hand-written JAX step and PyTorch
loader       rows delivered against rows consumed
allocator    what the allocator's settings bring and cost
lstm         the LSTM's step against torch.nn.LSTM
generate     greedy decoding against transformers
startup      ablax --help, warm start to first step
ngram        fit and score on WikiText-2, against KenLM        (needs DATA/wikitext-2)
shakespeare  the shipped experiment against nanoGPT's steps    (needs DATA/tinyshakespeare)

Sides take turns in rounds; a ratio is the median of the rounds' own, and min and max are those of the rounds. On a
machine with an NVIDIA GPU both libraries compute there, at GPT-2 124M in bfloat16; JAX_PLATFORMS=cpu keeps to the CPU.
Exit code 1: a target was missed.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from row import Row
from setting import Setting, choose_setting, on_gpu
from shakespeare import measure_shakespeare
from startup import measure_startup
from steps import measure_allocator, measure_loader, measure_step

from ablax.commands.output import say, table
from ablax.run import code_state

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "data"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "torch", "transformers")


QUIET = 0.7  # load average below which a machine of two cores is at rest


class Skipped(Exception):
    """A measurement that cannot be made here, and why."""


def measure_lstm(setting: Setting, quick: bool, data: Path) -> list[Row]:
    """lstm.py in a process of its own."""
    options = [f"--threads={setting.threads}", f"--rounds={2 if quick else 25}"]
    rows = []
    for case in _script("lstm.py", *options)["lstm"]:
        name = f"LSTM {case['num_layers']} x {case['width']}"
        rows += [
            Row(f"{name}, our step", case["ours_ms"], "ms"),
            Row(f"{name}, torch.nn.LSTM's step", case["torch_ms"], "ms"),
            Row(
                f"{name}, ours / PyTorch",
                *(case["ratio"], "x", case["ratio_min"], case["ratio_max"]),
                at_most=1.1,
            ),
        ]
    return rows


def measure_generate(setting: Setting, quick: bool, data: Path) -> list[Row]:
    """generate.py in a process of its own."""
    if on_gpu():
        raise Skipped("the target is one for CPUs; set JAX_PLATFORMS=cpu and CUDA_VISIBLE_DEVICES=")
    small = ["--quick", "--rounds=2", "--new=4"] if quick else []
    rows = []
    for case in _script("generate.py", f"--threads={setting.threads}", *small)["generate"]:
        name = f"decoding, {case['batch']} at once"
        rows += [
            Row(f"{name}, ours", case["ours"], "tokens/s"),
            Row(f"{name}, transformers", case["theirs"], "tokens/s"),
            Row(
                f"{name}, ours / transformers",
                *(case["ratio"], "x", case["ratio_min"], case["ratio_max"]),
                at_least=2.0,
            ),
        ]
    return rows


def measure_ngram(setting: Setting, quick: bool, data: Path) -> list[Row]:
    """ngram.py in a process of its own."""
    folder = _required(data / "wikitext-2", "train.txt", "test.txt")
    case = _script("ngram.py", f"--data={folder}")["ngram"][0]
    off = abs(case["perplexity"] - case["reference_perplexity"])
    return [
        Row("5-gram perplexity, WikiText-2 test", case["perplexity"], ""),
        Row("... off KenLM's lmplz", off, "", at_most=0.05),
        Row("fit", case["fit_seconds"], "s", at_most=12.0),
        Row("scored", case["scored_tokens_per_second"], "tokens/s", at_least=1e6),
    ]


def _script(name: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(HERE / name), *arguments], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{name} exits with {done.returncode}; its words are above")
    return json.loads(done.stdout)


def _required(folder: Path, *names: str) -> Path:
    for name in names:
        if not (folder / name).is_file():
            raise Skipped(f"{folder / name} is absent; name its parent's folder with --data")
    return folder


def shakespeare(setting: Setting, quick: bool, data: Path) -> list[Row]:
    """The Shakespeare run, on a CPU with the text at hand."""
    _required(data / "tinyshakespeare", "input.txt")
    if on_gpu():
        raise Skipped(
            "the setting is one for CPUs; set JAX_PLATFORMS=cpu and CUDA_VISIBLE_DEVICES="
        )
    return measure_shakespeare(setting, quick, data)


MEASURES: dict[str, Callable[[Setting, bool, Path], list[Row]]] = {
    "step": lambda setting, quick, _: measure_step(setting, quick),
    "loader": lambda setting, quick, _: measure_loader(setting, quick),
    "allocator": lambda setting, quick, _: measure_allocator(setting, quick),
    "lstm": measure_lstm,
    "generate": measure_generate,
    "startup": lambda _, quick, __: measure_startup(quick),
    "ngram": measure_ngram,
    "shakespeare": shakespeare,
}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "gpu": on_gpu(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "code": code_state(HERE.parents[1] / "research"),
    }


def show(title: str, rows: list[Row]) -> None:
    """One measurement's table."""
    verdict = {True: "pass", False: "MISSED", None: ""}
    columns = ("measured", "value", "unit", "min", "max", "target", "")
    cells = [
        (r.name, r.value, r.unit, r.low, r.high, r.target or "", verdict[r.passed]) for r in rows
    ]
    table(title, columns, cells)


def chosen(text: str) -> list[str]:
    """The measurements named in a comma-separated list."""
    names = text.split(",")
    for name in names:
        if name not in MEASURES:
            raise argparse.ArgumentTypeError(f"{name!r} must be of {', '.join(MEASURES)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=chosen, default=list(MEASURES), metavar="NAME,...")
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON here")
    arguments = parser.parse_args()
    setting = choose_setting(arguments.quick)
    result: dict[str, Any] = {"machine": machine(), "setting": json.loads(setting.to_json())}
    if result["machine"]["load_before"] > QUIET and not arguments.quick:
        say(
            f"the load is {result['machine']['load_before']:.2f}: others compute here, and PyTorch's threads, which "
            "wait by spinning, suffer more from it than JAX's; believe no ratio taken above "
            f"{QUIET:g}"
        )
    missed = []
    for name in arguments.only:
        try:
            rows = MEASURES[name](setting, arguments.quick, arguments.data)
        except Skipped as reason:
            say(f"{name} skipped: {reason}")
            result[name] = {"skipped": str(reason)}
            continue
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            say(f"{name} failed: {error}")  # what was measured before is worth keeping
            result[name] = {"failed": str(error)}
            missed.append(name)
            continue
        show(name, rows)
        result[name] = [row.to_dict() for row in rows]
        missed += [row.name for row in rows if row.passed is False]
    text = json.dumps(result | {"missed": missed}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 1 if missed and not arguments.quick else 0


if __name__ == "__main__":
    sys.exit(main())
