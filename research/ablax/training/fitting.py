"""A run without steps: a model that is counted, not descended."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from ablax.config import RequestError
from ablax.data.corpus import Corpus
from ablax.run import RunFolder, now
from ablax.training.evaluators import Evaluator
from ablax.training.manifest import seal_file
from ablax.training.phases import Phases
from ablax.training.records import Records
from ablax.training.signals import Stop

FITTED = "ngram.npz"


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
        store = corpus.stores["train"]
        model = experiment.model.fit(
            store.tokens, store.offsets, corpus.tokenizer.vocab_size, **corpus.marks
        )
        seconds = time.perf_counter() - began
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        model.save(folder.checkpoints / FITTED)
        seal_file(folder.checkpoints / FITTED)
        say(
            f"fitted {model.parameter_count:,} numbers to {len(store.tokens):,} tokens in {seconds:.1f} s"
        )
        evaluator = Evaluator(experiment.evaluation, corpus, experiment.objective, folder.evals)
        records = Records(folder.metrics_file)
        records.truncate(0)
        speed = len(store.tokens) / max(seconds, 1e-9)
        records.write({"step": 0, "split": "train", "tokens_per_second": speed})
        records.write(evaluator.fitted(model))
        records.close()
        ended = {"ended": now(), "seconds": seconds, "parameters": model.parameter_count}
        folder.update(status="finished", step=0, **ended)
