"""Our training step three ways: in the whole loop, as the bare program, and the loader alone."""

import contextlib
import dataclasses
import random
from pathlib import Path
from typing import Any

import jax
from setting import Setting

from ablax.data.corpus import open_corpus
from ablax.experiment import base, resolve
from ablax.run import RunFolder
from ablax.training import session
from ablax.training.every import Every
from ablax.training.ledger import Ledger
from ablax.training.loop import Loop
from ablax.training.meter import Meter
from ablax.training.parallel import MeshEngine
from ablax.training.recovery import Recovery
from ablax.training.seat import Alone, drive
from ablax.training.signals import Stop
from ablax.training.speed import Speed
from ablax.training.writers import open_writers

PREMADE = 16  # batches that the bare steps take turns with
STEPS_ENOUGH = 1_000_000  # steps of the schedule, more than any measurement takes


def experiment_of(setting: Setting, text: Path) -> Any:
    """The experiment at this setting, over a text file."""
    config: Any = base(
        model="decoder:tiny",
        tokenizer="character",
        source=f"text:{text}",
        optimizer="adamw:gpt3",
    )
    config.data.document_marks = False
    config.data.sequence_length = setting.length
    config.data.split.rule = "tail"
    config.model.num_layers, config.model.num_heads = setting.layers, setting.heads
    config.model.width, config.model.dtype = setting.width, setting.dtype
    config.model.bias = False
    config.training.batch_size = setting.batch
    config.training.steps = STEPS_ENOUGH
    config.parallel.data = 1
    return resolve(config)


class Ours:
    """The three sides over one program.

    Args:
      folder: takes the text, the token store and the run's files.
    """

    def __init__(self, setting: Setting, folder: Path, stack: contextlib.ExitStack):
        text = folder / "text.txt"
        letters, draw = setting.alphabet(), random.Random(0)
        length = max(1_000_000, 40 * setting.batch * setting.length)
        text.write_text(letters + "".join(draw.choices(letters, k=length)), encoding="utf-8")
        self.experiment = experiment_of(setting, text)
        corpus = open_corpus(self.experiment.data, (), cache=folder / "cache")
        if corpus.tokenizer.vocab_size != setting.vocab:
            raise ValueError(f"V is {corpus.tokenizer.vocab_size} and not {setting.vocab}")
        self.stream = corpus.stores["train"].tokens
        self.loader = session.training_loader(self.experiment, corpus)
        clock = session.Clock.of(self.experiment.training.steps, self.loader)
        self.program = session.build_program(self.experiment, setting.vocab, clock)
        engine = session.build_engine(self.experiment, self.program)
        assert isinstance(engine, MeshEngine)
        self.engine = engine
        self.state, self.bare_state = (self._init() for _ in range(2))
        self.batches = stack.enter_context(self.loader.iterate(0))
        self.own_batches = stack.enter_context(self.loader.iterate(0))
        self.premade = [self.loader.batch(step) for step in range(PREMADE)]
        self.placed = [self.engine.place(batch) for batch in self.premade]
        self.step = jax.jit(self.program.step, donate_argnums=0)
        (folder / "run").mkdir()
        run = RunFolder(folder / "run")
        guard = self.experiment.training.guard
        self.recovery = Recovery(guard, run, lambda: None, lambda _: None, [])
        self.ledger = stack.enter_context(
            Ledger(run.path, self.loader, self.recovery.batch, lambda _: None)
        )
        self.writers = stack.enter_context(
            open_writers(
                self.experiment.writers,
                run,
                clock.total,
                0,
                False,
                lambda _: None,
            )
        )

    def _init(self) -> Any:
        key = session.root_key(self.experiment.seed)
        return self.engine.init(key, session.hyper_of(self.experiment))

    def loop(self, count: int) -> None:
        """The loop of a run: loader, engine, metrics one step late, meter, writers."""
        stop = Stop()
        seat = Alone(self.engine, stop)
        loop = Loop(
            seat=seat,
            batches=lambda _: self.batches,
            every=Every(
                int(self.state.step) + count, log=self.experiment.writers.every, evaluate=0, save=0
            ),
            meter=Meter(Speed(self.loader.tokens_per_step)),
            write=lambda record: record["split"] == "train" and self.writers.write(record),
            evaluate=lambda _, step: {"step": step, "split": "validation"},
            save=lambda *_: None,
            stop=stop,
            recovery=self.recovery,
            seen=self.ledger.write,
        )
        self.state = drive(loop.run(self.state), seat.step)

    def bare_program(self, count: int) -> None:
        """The same program called on batches that lie on the device, nothing fetched."""
        before = None
        for turn in range(count):
            self.bare_state, metrics = self.step(self.bare_state, self.placed[turn % PREMADE])
            if before is not None:
                before.block_until_ready()
            before = metrics["loss"].total
        jax.block_until_ready(self.bare_state)

    def load(self, count: int) -> None:
        """Batches from the loader's iterator, nothing done with them."""
        for _ in range(count):
            next(self.own_batches)

    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    def describe(self) -> dict[str, Any]:
        """What is trained, for the record."""
        return {
            "parameters": self.parameters(),
            "device": jax.devices()[0].device_kind,
            "model": dataclasses.asdict(self.experiment.model),
        }
