"""A run that sends itself a signal at a seeded moment of a named phase. Its own process; also the page that it trains.

    python killed_run.py FAMILY-STEPS WORKDIR [SIGNAL MOMENT SEED]
    python killed_run.py --serve

Environment: KILLED_TEXT is the text that it reads. In the run folder it leaves `mark.json`, written just before the
signal, and `seen.txt`, a line with step and hash for every batch that was trained on.
"""

import hashlib
import json
import os
import random
import signal
import sys
import threading
import time

import jax

import ablax.commands.train
import ablax.devices
import ablax.trainer  # noqa: F401
from ablax.cli import main
from ablax.data import loader
from ablax.experiment import base
from ablax.training import parallel, phases
from ablax.training.phases import Phase

# moment -> seconds from its beginning within which the signal is sent
MOMENTS = {
    "compile": 0.08,
    "mid-step": 0.002,
    "accumulation": 0.001,
    "saving": 0.005,
    "commit": 0.01,
    "evaluation": 0.005,
    "epoch boundary": 0.002,
}


def get_config(argument: str):
    """`FAMILY-STEPS`: two micro-batches a step, dropout, averaged parameters, epochs; the LSTM carries its state."""
    family, steps = argument.split("-")
    kinds = {"model": family, "objective": "masked" if family == "encoder" else "causal"}
    config = base(**kinds, tokenizer="byte")
    config.data.source = {"kind": "text", "glob": os.environ["KILLED_TEXT"]}
    config.data.split = {"rule": "tail", "validation": 0.1}
    config.data.sequence_length, config.model.num_layers, config.model.width = 16, 1, 32
    if family == "lstm":
        config.data.layout = "streams"
        config.model.dropout_hidden = config.model.dropout_output = 0.1
    else:
        config.model.num_heads, config.model.residual_dropout = 2, 0.1
    if family == "encoder":
        config.evaluation.pseudo_documents = 2
    config.training.batch_size, config.training.accumulation = 8, 2
    config.training.steps = int(steps)
    config.training.ema_decay, config.schedule.warmup = 0.9, 4
    config.evaluation.every, config.checkpoint.every, config.writers.every = 5, 6, 4
    config.evaluation.batch_rows = 2
    config.writers.tensorboard = False
    return config


class Killer(threading.Thread):
    """Waits for the moment, lets it go by a seeded number of times, and sends the signal within the next.

    A moment that ends before the seeded delay is over is not the one: what is marked was really hit.
    """

    def __init__(self, workdir: str, number: int, moment: str, seed: int):
        super().__init__(daemon=True)
        self.workdir, self.number, self.moment = workdir, number, moment
        self.rng = random.Random(f"{moment} {seed}")
        self.left = 0 if moment == "compile" else self.rng.randrange(2)
        self.phase = self.looked_at = Phase("start", 0, 0.0)
        self.running, self.loader = None, None

    def run(self) -> None:
        """Until the process is dead, or knows that it shall be."""
        while True:
            while not (found := self.here()):
                time.sleep(0.0002)
            if self.left:
                self.left -= 1
            else:
                time.sleep(self.rng.uniform(0, MOMENTS[self.moment]))
                if self.here() == found:
                    return self.kill()
            while self.here() == found:
                time.sleep(0.0002)

    def here(self):
        """What tells this occasion of the moment from others; None outside it."""
        # The run goes on while it is looked at, and may be in the next phase when the mark is written.
        phase = self.looked_at = self.phase
        unfinished = self.unfinished()
        inside = {
            "compile": phase.name == "compile",
            "mid-step": phase.name == "step",
            "accumulation": self.running is not None and not self.running.is_ready(),
            "saving": phase.name == "save" and unfinished,
            # `save` has returned and Orbax writes in the background; at the start it is what a kill left behind.
            "commit": phase.name not in ("start", "save") and unfinished,
            "evaluation": phase.name == "evaluate",
            "epoch boundary": phase.name in ("data", "step") and self.first_of_epoch(phase.step),
        }[self.moment]
        occasion = unfinished if self.moment in ("saving", "commit") else phase.step
        return occasion if inside else None

    def unfinished(self) -> list[str]:
        """Orbax's temporary folders."""
        folder = os.path.join(self.workdir, "checkpoints")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return [name for name in names if "orbax-checkpoint-tmp" in name]

    def first_of_epoch(self, step: int) -> bool:
        """Whether the batch of this update holds an epoch's first row, from the second on."""
        rows, size = self.loader.rows_per_epoch, self.loader.global_batch_size
        return step > 1 and (step * size - 1) // rows > ((step - 1) * size - 1) // rows

    def kill(self) -> None:
        """Leaves the mark and sends the signal."""
        mark = {"moment": self.moment, "phase": self.looked_at.name, "step": self.looked_at.step}
        mark |= {"unfinished": self.unfinished()}
        with open(os.path.join(self.workdir, "mark.json"), "w") as file:
            json.dump(mark, file)
        os.kill(os.getpid(), self.number)


def listen(killer: Killer | None, workdir: str) -> None:
    """Tells the killer where the run is, and writes down the batches."""
    enter, step, iterate = phases.Phases.enter, parallel.MeshEngine.step, loader.Loader.iterate

    def entering(self, name, number):
        enter(self, name, number)
        listen.step = number
        if killer:
            killer.phase = self.current

    def stepping(self, state, batch):
        digest = hashlib.sha256()
        for name in sorted(batch):
            digest.update(name.encode() + batch[name].tobytes())
        with open(os.path.join(workdir, "seen.txt"), "a") as file:
            file.write(f"{listen.step} {digest.hexdigest()}\n")
        result = step(self, state, batch)
        if killer and killer.phase.name == "step":
            killer.running = jax.tree.leaves(result[1])[0]
        return result

    def iterating(self, start=0):
        if killer:
            killer.loader = self
        return iterate(self, start)

    phases.Phases.enter, parallel.MeshEngine.step = entering, stepping
    loader.Loader.iterate = iterating


def train(argument: str, workdir: str, *kill: str) -> int:
    """The command's exit code, if the process lives to see it."""
    killer = Killer(workdir, signal.Signals[kill[0]], kill[1], int(kill[2])) if kill else None
    listen(killer, workdir)
    if killer:
        killer.start()
    sys.argv = ["ablax", "train", f"--config={__file__}:{argument}", f"--workdir={workdir}"]
    return main()


def serve() -> None:
    """For each line of stdin, a list of arguments and a file for the output, a process of its own; its exit code.

    They are forked before JAX has a backend, so that Python's imports, half of a short run, are made once.
    """
    for line in sys.stdin:
        arguments, output = json.loads(line)
        child = os.fork()
        if not child:
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.exit(train(*arguments))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        sys.exit(train(*sys.argv[1:]))
