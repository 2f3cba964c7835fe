"""A run without steps: a model that is counted, not descended."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ablax.config import RequestError
from ablax.data.corpus import Corpus
from ablax.data.store import TokenStore
from ablax.run import RunFolder, now
from ablax.training.evaluators import Evaluator
from ablax.training.manifest import seal_file
from ablax.training.phases import Phases
from ablax.training.records import Records
from ablax.training.session import Clock, training_loader
from ablax.training.signals import Stop

FITTED = "ngram.npz"


def drawn(store: TokenStore, budget: int, marks: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents in a random order until they have `budget` tokens, their marks included; the last one is cut there.

    A budget beyond the store is all of it: reading a text again tells a model that counts nothing new.

    Args:
      store: at least one document.
      budget: tokens, at least 1.
      marks: around each document.
      seed: of the order.

    Returns:
      Tokens [total] without marks, and where each document begins, int64 [documents + 1].
    """
    order = np.random.default_rng(seed).permutation(len(store))
    ends = np.cumsum(np.diff(store.offsets)[order] + marks)
    last = int(np.searchsorted(ends, budget))
    documents = [store.document(int(i)) for i in order[: last + 1]]
    if last < len(order):
        over = int(ends[last]) - budget
        documents[last] = documents[last][: max(0, len(documents[last]) - over)]
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    return np.concatenate(documents), offsets


@dataclasses.dataclass(frozen=True, eq=False)
class Fitting:
    """A run of a model that has `fit`.

    Attributes:
      experiment: resolved.
      corpus: its data.
    """

    experiment: Any
    corpus: Corpus

    def check_growth(self, folder: RunFolder) -> None:
        """There is nothing to go on with: counting starts over."""

    def check_files(self, folder: RunFolder, fresh: bool, say: Callable[[str], None]) -> None:
        """Counts are not taken from other runs, and how large they are is known when they have been counted.

        Raises:
          RequestError: if parameters are to be taken.
        """
        if self.experiment.init.run:
            raise RequestError(
                f"init.run={self.experiment.init.run}: a fitted model starts from counts alone; leave it out"
            )

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        """The documents that are counted: tokens [total] without marks, and offsets [documents + 1]."""
        experiment, corpus = self.experiment, self.corpus
        store = corpus.stores["train"]
        if experiment.model.read == "all":
            return store.tokens, store.offsets
        clock = Clock.of(experiment.training.steps, training_loader(experiment, corpus))
        marks = sum(mark is not None for mark in corpus.marks.values())
        return drawn(store, clock.total * clock.tokens_per_step, marks, experiment.seed)

    def run(
        self,
        folder: RunFolder,
        progress: bool,
        say: Callable[[str], None],
        phases: Phases,
        stop: Stop,
    ) -> None:
        """Counts, saves, evaluates. It stays in the phase "start": a wish to stop ends it, and it starts over."""
        experiment, corpus = self.experiment, self.corpus
        began = time.perf_counter()
        tokens, offsets = self.documents()
        model = experiment.model.fit(tokens, offsets, corpus.tokenizer.vocab_size, **corpus.marks)
        seconds = time.perf_counter() - began
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        model.save(folder.checkpoints / FITTED)
        seal_file(folder.checkpoints / FITTED)
        say(
            f"fitted {model.parameter_count:,} numbers to {len(tokens):,} tokens in {seconds:.1f} s"
        )
        evaluator = Evaluator(experiment.evaluation, corpus, experiment.objective, folder.evals)
        records = Records(folder.metrics_file)
        records.truncate(0)
        speed = len(tokens) / max(seconds, 1e-9)
        records.write({"step": 0, "split": "train", "tokens_per_second": speed})
        records.write(evaluator.fitted(model))
        records.close()
        ended = {"ended": now(), "seconds": seconds, "parameters": model.parameter_count}
        folder.update(status="finished", step=0, **ended)
