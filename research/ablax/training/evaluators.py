"""What is measured during and after training: one function from (parameters, step) to a record."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ablax.config import Duration, RequestError, knob, traced
from ablax.data.corpus import Corpus
from ablax.evaluation.choices import bracket_tokens, score_choices
from ablax.evaluation.labels import LABELS
from ablax.evaluation.masked import score_masked, score_pseudo_likelihood
from ablax.evaluation.ngram_scoring import score_documents_by_ngram
from ablax.evaluation.probes import score_probes
from ablax.evaluation.scores import (
    PROBES,
    MetricIdentity,
    Scores,
    metric_names,
    totals,
    write_scores,
)
from ablax.evaluation.scoring import Batch, Over, check_context, score_documents
from ablax.evaluation.states import check_states
from ablax.objectives.batch import vocabulary_of
from ablax.run import RunFailed
from ablax.training.samples import choose, probed, take
from ablax.training.state import scalars


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on held-out documents, and when."""

    every: Duration = knob(
        Duration("20%"), "Time between evaluations; 0 = only at the end.", mark="execution"
    )
    split: str = knob("validation", "Split that is measured during training.")
    documents: int | None = knob(
        None, "Evaluates a fixed sample of this many documents of the split; none = all."
    )
    rule: Literal["document", "stream"] = knob(
        "document", "document: each from its own start; stream: windows over the joined documents."
    )
    context: int | None = knob(None, "Tokens of context; none = data.sequence_length.")
    stride: int | None = knob(None, "Tokens that a window moves; none = the context, no overlap.")
    batch_rows: int = knob(
        8,
        "Rows that are scored together; the devices of a run share them where they divide.",
        mark="execution",
    )
    pseudo_documents: int = knob(
        16, "Masked models: documents of the pseudo-log-likelihood, 0 leaves it out."
    )
    pseudo_every: int = knob(8, "Masked models: every n-th token of them is scored.")
    choices: int = knob(
        0,
        "Closing brackets of held-out text that neural models, causal and masked alike, choose among ) ] }, given all "
        "that stands around; 0 leaves it out.",
    )
    probe_documents: int = knob(
        0,
        "Training documents to whose tokens linear probes of a neural model's states are fitted; 0 leaves them out.",
    )
    probe_label: Literal["python", "brackets"] = knob(
        "python",
        "What probes tell of each token: python = code outside brackets, inside one or more, string, or comment, of "
        "Python source; brackets = how many are open, in any text.",
    )
    probe_layer: float = knob(
        1.0, "Whose states probes read, as a share of the depth; 1 = what the head reads."
    )

    def __post_init__(self):
        for name in ("documents", "context", "stride"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RequestError(f"{name}={getattr(self, name)} must be at least 1, or none")
        for name in ("batch_rows", "pseudo_every"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("pseudo_documents", "choices", "probe_documents"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name}={getattr(self, name)} must be 0 or more")
        if not 0 < self.probe_layer <= 1:
            raise RequestError(f"probe_layer={self.probe_layer} must be above 0 and at most 1")


def metrics_of(experiment: Any) -> tuple[str, ...]:
    """The metrics that an experiment's evaluations may report."""
    config = experiment.evaluation
    further = metric_names("choice") if config.choices else ()
    if config.probe_documents:
        further += tuple(name for probe in PROBES for name in metric_names(probe))
    if experiment.objective.CAUSAL:
        return metric_names("likelihood") + further
    pseudo = metric_names("pseudo_likelihood") if config.pseudo_documents else ()
    return metric_names("masked") + pseudo + further


def check_evaluation(experiment: Any, corpus: Corpus, module: Any) -> None:
    """Refuses before training what could not be measured after it.

    Raises:
      RequestError: if the context is too long for the module's positions, or documents, tokenizer or module do not give
        what choices or probes ask for.
    """
    config = experiment.evaluation
    check_context(module, config.context or experiment.data.sequence_length)
    if config.choices:
        bracket_tokens(corpus.tokenizer)
    if config.probe_documents:
        tested = choose(corpus, config.split, config.documents)
        probed(corpus, config.split, tested, config.probe_documents, config.probe_label)
        check_states(module, scalars(traced(experiment.model)), config.probe_layer)


class Evaluator:
    """Scores a split of a corpus with any family of model.

    Args:
      config: what is measured.
      corpus: the data.
      objective: decides between likelihoods and masked scores.
      folder: where totals and per-document sums are written; None writes nothing.
      split: in place of the configuration's.
      label: of the files, after split and step: what was measured otherwise than in training.
      over: of the engine whose devices share the rows of a batch.
      before_batch: called before each batch; what it raises breaks the evaluation off.
      unwritten: takes a line if the disk does not take the sums; an error when None.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        corpus: Corpus,
        objective: Any,
        folder: Path | None,
        split: str | None = None,
        label: str = "",
        over: Over = contextlib.nullcontext,
        before_batch: Callable[[], None] = lambda: None,
        unwritten: Callable[[str], None] | None = None,
    ):
        self.config, self.corpus, self.objective, self.folder = config, corpus, objective, folder
        self.split = split or config.split
        self.chosen = choose(corpus, self.split, config.documents)
        self.documents, self.names = take(corpus, self.split, self.chosen)
        self.context = config.context or corpus.config.sequence_length
        self.label, self._over = label, over
        self._before_batch, self._unwritten = before_batch, unwritten

    def neural(
        self,
        module: Any,
        params: Any,
        hyper: Mapping[str, Any],
        step: int,
        last: bool = True,
    ) -> dict[str, Any]:
        """The record of a Linen model at a step; at the `last` with pseudo-log-likelihood, choices and probes."""
        if self.objective.CAUSAL:
            results = self._causal(module, params, hyper)
        else:
            results = self._masked(module, params, hyper, last)
        if self.config.choices and last:
            results.append(self._choices(module, params, hyper))
        if self.config.probe_documents and last:
            results += self._probes(module, params, hyper)
        return self.record(step, results)

    def fitted(self, model: Any) -> dict[str, Any]:
        """The record of an n-gram model."""
        return self.record(0, [score_documents_by_ngram(model, self.documents, names=self.names)])

    def record(self, step: int, results: Sequence[tuple[Scores, MetricIdentity]]) -> dict[str, Any]:
        """One record of all measures; each one's sums are written to the run folder."""
        record: dict[str, Any] = {"step": step, "split": self.split}
        for scores, identity in results:
            found = totals(scores, identity)
            own = ("choice", *PROBES)
            if identity.measure in ("pseudo_likelihood", *own):  # their own samples of tokens
                found = {k: v for k, v in found.items() if k in metric_names(identity.measure)}
            record |= found
            if identity.measure not in own and not identity.to_dict()["comparable"]:
                record |= {"comparable": False, "reason": identity.reason}
            suffix = "" if identity.measure == "likelihood" else f"-{identity.measure}"
            name = f"{self.split}-{step}{self.label}{suffix}"
            if self.folder is not None:
                self._write(self.folder, name, scores, identity)
        return record

    def _write(self, folder: Path, name: str, scores: Scores, identity: MetricIdentity) -> None:
        try:
            write_scores(folder, name, scores, identity)
        except OSError as error:
            line = f"the sums per document of {name} were not written in {folder}: {error.strerror}"
            if self._unwritten is None:
                raise RunFailed(line) from error
            self._unwritten(line)

    def _causal(self, module: Any, params: Any, hyper: Any) -> list[tuple[Scores, MetricIdentity]]:
        result = score_documents(
            module,
            params,
            self.documents,
            document_rule=self.config.rule,
            stride=self.config.stride,
            **self._common(hyper),
        )
        return [result]

    def _masked(
        self, module: Any, params: Any, hyper: Any, last: bool
    ) -> list[tuple[Scores, MetricIdentity]]:
        tokenizer, common = self.corpus.tokenizer, self._common(hyper)
        mask = tokenizer.specials.mask
        assert mask is not None, "the corpus was opened with what the objective needs"
        results = [
            score_masked(
                module,
                params,
                self.documents,
                objective=self.objective,
                vocabulary=vocabulary_of(tokenizer),
                **common,
            )
        ]
        if self.config.pseudo_documents and last:
            pseudo = score_pseudo_likelihood(
                module,
                params,
                self.documents,
                mask=mask,
                every=self.config.pseudo_every,
                max_documents=self.config.pseudo_documents,
                **common,
            )
            results.append(pseudo)
        return results

    def _choices(self, module: Any, params: Any, hyper: Any) -> tuple[Scores, MetricIdentity]:
        return score_choices(
            module,
            params,
            self.documents,
            choices=bracket_tokens(self.corpus.tokenizer),
            mask=None if self.objective.CAUSAL else self.corpus.tokenizer.specials.mask,
            count=self.config.choices,
            **self._common(hyper),
        )

    def _probes(self, module: Any, params: Any, hyper: Any) -> list[tuple[Scores, MetricIdentity]]:
        count, kind = self.config.probe_documents, self.config.probe_label
        tested, training = probed(self.corpus, self.split, self.chosen, count, kind)
        return score_probes(
            module,
            params,
            tested,
            training=training,
            kind=kind,
            classes=LABELS[kind][1],
            vocab_size=self.corpus.tokenizer.vocab_size,
            depth=self.config.probe_layer,
            **self._common(hyper),
        )

    def _common(self, hyper: Any) -> dict[str, Any]:
        return {
            "hyper": hyper,
            "context_length": self.context,
            "batch_rows": self.config.batch_rows,
            "names": self.names,
            "put": self._put,
            "over": self._over,
            **self.corpus.marks,
        }

    def _put(self, batch: Batch) -> Batch:
        self._before_batch()
        return batch
