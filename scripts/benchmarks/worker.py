"""A process that takes training steps on demand, so that each library has its own threads and its own allocator.

  python worker.py jax|torch SETTING       # `SIDE COUNT` a line on stdin, one JSON object a line on stdout

Before the timed steps a few untimed ones are taken: threads wake up, caches fill.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from setting import Setting

UNTIMED = 3
Sides = dict[str, Callable[[int], None]]


class Worker:
    """The parent's end of such a process; a context manager.

    Args:
      library: `jax` or `torch`.
      setting: what is trained.
      **environ: added to the environment.
    """

    def __init__(self, library: str, setting: Setting, **environ: str):
        self.process = subprocess.Popen(
            [sys.executable, __file__, library, setting.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | environ,
        )
        self.facts = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {self.process.wait()}; its words are above")
        return json.loads(line)

    def time(self, side: str, count: int) -> dict[str, float]:
        """`seconds` per step over this many steps, `peak_bytes` of the process so far."""
        assert self.process.stdin is not None
        print(side, count, file=self.process.stdin, flush=True)
        return self._answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def interleaved(
    sides: dict[str, tuple[Worker, str]], rounds: int, count: int
) -> dict[str, list[float]]:
    """Seconds per step of each side, one number a round; sides take turns, in a rotating order."""
    names, times = list(sides), {name: [] for name in sides}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            worker, side = sides[name]
            times[name].append(worker.time(side, count)["seconds"])
    return times


def jax_sides(setting: Setting, folder: Path, stack: contextlib.ExitStack) -> tuple[Sides, Any]:
    """Ours and the hand-written step."""
    from ablax.allocator import tune_malloc

    tuned = tune_malloc()
    from bare import Bare
    from ours import Ours

    ours = Ours(setting, folder, stack)
    sides = {
        "loop": ours.loop,
        "program": ours.bare_program,
        "loader": ours.load,
        "bare": Bare(setting, ours.premade),
    }
    return sides, ours.describe() | {"allocator_tuned": tuned}


def torch_sides(setting: Setting, folder: Path, stack: contextlib.ExitStack) -> tuple[Sides, Any]:
    """nanoGPT's step, and the same with the fused optimizer."""
    if os.environ.get("ABLAX_MALLOC") == "1":
        from ablax.allocator import tune_malloc

        tune_malloc()
    import numpy as np
    import torch
    from nanogpt import Nanogpt

    stream = np.random.default_rng(0).integers(setting.vocab, size=1_000_000).astype(np.uint16)
    sides = {name: Nanogpt(setting, stream, name == "fused") for name in ("default", "fused")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    return dict(sides), {"device": device, "threads": threads, "version": torch.__version__}


@contextlib.contextmanager
def private_stdout() -> Iterator[Any]:
    """Our answers go where stdout went; whatever libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        yield answers


def main() -> int:
    library, text = sys.argv[1:]
    make = {"jax": jax_sides, "torch": torch_sides}[library]
    with contextlib.ExitStack() as stack:
        answers = stack.enter_context(private_stdout())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ablax-benchmark-")))
        sides, facts = make(Setting.from_json(text), folder, stack)
        print(json.dumps(facts, default=str), file=answers, flush=True)
        for line in sys.stdin:
            name, count = line.split()
            sides[name](UNTIMED)
            start = time.perf_counter()
            sides[name](int(count))
            seconds = (time.perf_counter() - start) / int(count)
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps({"seconds": seconds, "peak_bytes": peak}), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
