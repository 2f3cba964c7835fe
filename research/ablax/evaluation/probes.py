"""Probes: how often a linear function of a frozen model's states finds the label of a token."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Int8

from ablax.config import RequestError
from ablax.evaluation.labels import UNASKED
from ablax.evaluation.linear_probes import Linear, Moments, answers, centroids, ridge
from ablax.evaluation.pieces import Documents
from ablax.evaluation.scores import PROBES, MetricIdentity, Scores
from ablax.evaluation.scoring import Over, Put, check_context, make_scores, owners
from ablax.evaluation.states import Reader


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """Documents with a label for each token, or `UNASKED`."""

    documents: Documents
    labels: Int8[np.ndarray, " total"]

    @property
    def asked(self) -> np.ndarray:
        """The tokens that have a label, bool [total]."""
        return self.labels != UNASKED


def score_probes(
    module: nn.Module,
    params: Any,
    tested: Labelled,
    *,
    training: Labelled,
    kind: str,
    classes: int,
    vocab_size: int,
    hyper: Mapping[str, Any],
    bos: int | None,
    eos: int | None,
    context_length: int,
    depth: float = 1.0,
    batch_rows: int = 8,
    names: Sequence[str] | None = None,
    put: Put = dict,
    over: Over = contextlib.nullcontext,
) -> list[tuple[Scores, MetricIdentity]]:
    """Probes of a frozen model's states (Alain and Bengio 2016, arXiv:1610.01644), and what they must be held against.

    The state at a token has read that token and, unless the model is bidirectional, nothing behind it. The text up to
    the token settles its label, so a causal model may know it. A masked one sees all of the window, with no mask in it,
    and may also infer the label from what follows. A score says what a linear function finds, not what the model uses.

    The measures, all over the same tokens (see `Reader` for the windows; what lies before its window no model knows):

      probe: ridge regression; its penalty is chosen on every fourth training document.
      probe_centroid: the class of the nearest mean state.
      probe_control: ridge regression to labels drawn for each token id by the shares of the true ones. It shows what a
        probe memorises: `probe` less this is the selectivity of Hewitt and Liang 2019 (arXiv:1909.03368).
      probe_untrained: `probe` of the module before any training.
      probe_token: the label that the token's id has most often, without any model: what embeddings alone could tell.
      probe_majority: the commonest label.

    Args:
      tested: what is measured.
      training: other documents, to which probes are fitted.
      kind: of label, for the metrics' identity.
      classes: C; labels lie below.
      vocab_size: V.
      hyper, bos, eos, context_length, depth, batch_rows, put, over: see `Reader`.

    Raises:
      RequestError: if fewer than two training documents have labels, or for a context length below 2 or above the
        model's positions.
    """
    check_context(module, context_length)
    reader = Reader(module, hyper, bos, eos, context_length, depth, batch_rows, put, over)
    owner = owners(training.documents.offsets)
    kept = np.unique(owner[training.asked])
    if len(kept) < 2:
        raise RequestError(
            f"evaluation.probe_documents: {len(kept)} of {len(training.documents.byte_counts)} training documents have "
            "labels; probes need one, and their penalty another; raise it"
        )
    counts = np.zeros((vocab_size, classes))
    known = training.documents.tokens[training.asked], training.labels[training.asked]
    np.add.at(counts, known, 1)
    shares = counts.sum(0) / counts.sum()
    drawn = np.random.default_rng(0).choice(classes, vocab_size, p=shares)
    truth, control = tested.labels, drawn[tested.documents.tokens]
    fit = functools.partial(_moments, reader, training, np.isin(owner, kept[1::4]), classes)

    own, other = fit(params, training.labels, drawn[training.documents.tokens])
    asked = ((ridge(*own), truth), (centroids(own[0] + own[1]), truth), (ridge(*other), control))
    untrained = reader.untrained()
    (blank,) = fit(untrained, training.labels)
    right = (
        *_right(reader, params, tested, *asked),
        *_right(reader, untrained, tested, (ridge(*blank), truth)),
        # Of a token that was never seen, the commonest label.
        tested.asked * ((counts + 1e-3 * shares).argmax(1)[tested.documents.tokens] == truth),
        tested.asked * (truth == shares.argmax()),
    )
    identity = MetricIdentity(
        measure="probe",
        document_rule="document",
        context_length=context_length,
        stride=reader.stride,
        first_token=True,
        end=False,
        lossless=tested.documents.lossless,
        details=(("label", kind), ("layer", depth), ("fitted", len(kept))),
    )
    owner, size = owners(tested.documents.offsets), len(tested.documents.offsets) - 1
    results = []
    for measure, correct in zip(PROBES, right, strict=True):
        sums = [np.bincount(owner, values, size) for values in (tested.asked, correct)]
        scores = make_scores(np.stack([np.full(size, np.nan), *sums]), tested.documents, names)
        results.append((scores, dataclasses.replace(identity, measure=measure)))
    return results


def _moments(
    reader: Reader,
    training: Labelled,
    held: np.ndarray,
    classes: int,
    params: Any,
    *labels: np.ndarray,
) -> list[tuple[Moments, Moments]]:
    """For each set of labels the sums over the training tokens that are fitted, and over those held out."""
    sums: dict[tuple[int, bool], Moments] = {}
    for states, tokens in reader.states(params, training.documents, training.asked):
        for part in (False, True):
            mine = held[tokens] == part
            for number, own in enumerate(labels):
                found = Moments.of(states[mine], own[tokens[mine]], classes)
                key = number, part
                sums[key] = sums[key] + found if key in sums else found
    return [(sums[number, False], sums[number, True]) for number in range(len(labels))]


def _right(
    reader: Reader, params: Any, tested: Labelled, *asked: tuple[Linear, np.ndarray]
) -> list[np.ndarray]:
    """For each classifier and its labels whether it finds that of each token; 0 where none is asked for."""
    right = [np.zeros(len(tested.labels)) for _ in asked]
    for states, tokens in reader.states(params, tested.documents, tested.asked):
        for found, (linear, truth) in zip(right, asked):
            found[tokens] = answers(states, linear) == truth[tokens]
    return right
