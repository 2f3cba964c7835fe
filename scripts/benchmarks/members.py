"""Members against runs alone: a step of `decoder:tiny` for 1, 4, 16 and 64 runs as one program and one after the other.

  python scripts/benchmarks/members.py [--counts=1,4,16,64] [--rounds=9] [--steps=20]     # JSON on stdout

Both sides draw batches and fetch metrics one step late, each member from a loader of its own seed. Sides take turns in
rounds; a speed-up is the median of the rounds' own: a run's step alone over the members' step divided by their number.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from ours import experiment_of
from setting import Setting

from ablax.config import from_dict, to_dict
from ablax.data.corpus import open_corpus
from ablax.experiment import Experiment
from ablax.training import session
from ablax.training.members import Members
from ablax.training.seat import Wish

SETTING = Setting(layers=4, heads=4, width=128, length=64, batch=8)
UNTIMED = 3


class Sides:
    """A run alone, and any number of members."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack):
        text = folder / "text.txt"
        text.write_text(SETTING.alphabet() * 4000, encoding="utf-8")
        self.experiment = experiment_of(SETTING, text)
        self.corpus = open_corpus(self.experiment.data, (), cache=folder / "cache")
        self.stack = stack
        loader = session.training_loader(self.experiment, self.corpus)
        clock = session.Clock.of(self.experiment.training.steps, loader)
        self.program = session.build_program(self.experiment, SETTING.vocab, clock)
        self.engine = session.build_engine(self.experiment, self.program, jax.devices()[:1])
        self.state, self.batches = self.fresh(0), self.opened(0)

    def fresh(self, seed: int) -> Any:
        """A state."""
        hyper = session.hyper_of(self.experiment)
        return self.engine.init(session.root_key(seed), hyper)

    def opened(self, seed: int) -> Any:
        """Batches of a loader of this seed."""
        experiment = from_dict(Experiment, {**to_dict(self.experiment), "seed": seed})
        loader = session.training_loader(experiment, self.corpus)
        return self.stack.enter_context(loader.iterate(0))

    def alone(self, count: int) -> None:
        """Steps of one run."""
        before = None
        for _ in range(count):
            self.state, metrics = self.engine.step(self.state, next(self.batches))
            if before is not None:
                jax.device_get(before)
            before = metrics
        jax.device_get(before)

    def members(self, number: int) -> Any:
        """A function that makes steps of so many members."""
        template = self.engine.template(session.root_key(0), session.hyper_of(self.experiment))
        members = Members(self.program, template, number, jax.devices()[:1])
        for index in range(number):
            members.put(index, self.fresh(index))
        batches = [self.opened(index) for index in range(number)]

        def steps(count: int) -> None:
            before: Any = {}
            for _ in range(count):
                shares = members.step({i: Wish(next(own)) for i, own in enumerate(batches)})
                for share in before.values():
                    dict(share)
                before = shares
            for share in before.values():
                dict(share)

        return steps


def seconds(side: Any, count: int) -> float:
    """Of one step."""
    side(UNTIMED)
    start = time.perf_counter()
    side(count)
    return (time.perf_counter() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="1,4,16,64")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    result = []
    for number in map(int, arguments.counts.split(",")):
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sides = Sides(folder, stack)
            joint = sides.members(number)
            alone, together = [], []
            for turn in range(arguments.rounds):
                order = [(alone, sides.alone), (together, joint)]
                for times, side in order if turn % 2 else order[::-1]:
                    times.append(seconds(side, arguments.steps))
            ratios = [a * number / b for a, b in zip(alone, together, strict=True)]
            result.append(
                {
                    "members": number,
                    "speed_up": statistics.median(ratios),
                    "low": min(ratios),
                    "high": max(ratios),
                    "alone_ms": 1e3 * statistics.median(alone),
                    "together_ms": 1e3 * statistics.median(together),
                }
            )
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "jax": jax.__version__, "members": result}, indent=2))


if __name__ == "__main__":
    main()
