"""Scores: sums per document, their totals, and the identity of the metric they belong to."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from jaxtyping import Float64

from ablax.config import RequestError

Probe = Literal[
    "probe", "probe_centroid", "probe_control", "probe_untrained", "probe_token", "probe_majority"
]
Measure = Literal["likelihood", "pseudo_likelihood", "masked", "choice"] | Probe
PROBES: tuple[Probe, ...] = get_args(Probe)
"""Measures of `score_probes`: a probe, and what it must be held against."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Sums over each document, float64 [documents]. Documents, not tokens, are what statistics
    resample.

    Attributes:
      nats: negative log-likelihood of the counted tokens; nan of probes, which have none.
      tokens: how many tokens count, marks included.
      correct: how many of them were the likeliest; nan where that was not computed.
      bytes: UTF-8 bytes of the text that the counted tokens stand for.
      names: one per document, the same for every model scored on the split.
    """

    nats: Float64[np.ndarray, "documents"]
    tokens: Float64[np.ndarray, "documents"]
    correct: Float64[np.ndarray, "documents"]
    bytes: Float64[np.ndarray, "documents"]
    names: tuple[str, ...]

    def __post_init__(self):
        for field in ("nats", "tokens", "correct", "bytes"):
            array = getattr(self, field)
            assert array.dtype == np.float64, field
            assert array.shape == (len(self.names),), field


class Scorer(Protocol):
    """What evaluation needs of a model of any family."""

    def score(self, documents: Sequence[str]) -> Scores:
        """Scores each document on its own, as <bos> tokens <eos>."""
        ...


@dataclasses.dataclass(frozen=True)
class MetricIdentity:
    """What a number depends on beside the model: numbers of different identities are not ranked
    together.

    Attributes:
      measure: `likelihood`, `pseudo_likelihood` (Salazar et al. 2020), `masked`, `choice` (see `score_choices`), or
        one of `PROBES`.
      document_rule: `document` (each from its own start) or `stream` (windows over the joined
        documents).
      context_length: tokens of context at most; None: all of the document so far.
      stride: how far a window moves in a document longer than the context; None: it never has to.
      first_token: whether a document's first token counts (it does behind <bos>).
      end: whether the end of a document (<eos>) counts; it has no bytes.
      lossless: whether the text came back from its tokens in every document.
      details: further settings, such as the seed of a masking.
    """

    measure: Measure
    document_rule: Literal["document", "stream"]
    context_length: int | None
    stride: int | None
    first_token: bool
    end: bool
    lossless: bool
    details: tuple[tuple[str, Any], ...] = ()

    @property
    def reason(self) -> str | None:
        """Why bits per byte are not comparable with a language model's; None if they are."""
        if self.measure == "pseudo_likelihood":
            return "a pseudo-log-likelihood sees both sides of a token, so it is no probability"
        if self.measure == "masked":
            return "only the masked tokens are scored, each given tokens on both sides"
        if self.measure == "choice":
            return "a choice between a few tokens at chosen places is no probability of a text"
        if self.measure in PROBES:
            return "what a linear function finds in a model's states is no probability of a text"
        if not self.lossless:
            return "the tokenizer is lossy: its tokens do not stand for all bytes of the text"
        return None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, with `comparable` and `reason`."""
        fields = dataclasses.asdict(self) | {"details": dict(self.details)}
        return fields | {"comparable": self.reason is None, "reason": self.reason}


PREFIXES: dict[Measure, str] = {
    "likelihood": "",
    "pseudo_likelihood": "pseudo_",
    "masked": "masked_",
    "choice": "choice_",
    **{probe: f"{probe}_" for probe in PROBES},
}


def metric_names(measure: Measure) -> tuple[str, ...]:
    """What `totals` may report of a measure, beside sizes; which of it depends on tokenizer and model."""
    if measure in PROBES:
        return (f"{measure}_accuracy",)
    if measure in ("masked", "choice"):
        return (f"{measure}_nats_per_token", f"{measure}_accuracy")
    names = ("nats_per_token", "perplexity", "bits_per_byte", "token_accuracy")
    return tuple(PREFIXES[measure] + name for name in names)


def measure_of(metric: str) -> Measure:
    """The measure that reports a metric; the likelihood, whose metrics have no prefix, if none does."""
    for measure in PREFIXES:
        if metric in metric_names(measure):
            return measure
    return "likelihood"


def totals(scores: Scores, identity: MetricIdentity) -> dict[str, float]:
    """Metrics of all documents together: sums in float64, divided once.

    Returns:
      `documents`, `tokens`, `bytes`, and by measure: `nats_per_token`, `perplexity`,
      `token_accuracy` and, for lossless tokenizers, `bits_per_byte`; the same with `pseudo_`
      before; or `masked_nats_per_token` and `masked_accuracy`, and the same of `choice`;
      `probe_accuracy` and the like. `token_accuracy` is missing where it was not computed.

    Raises:
      RequestError: if no token counts.
    """
    nats, tokens, correct, size = (
        float(getattr(scores, name).sum()) for name in ("nats", "tokens", "correct", "bytes")
    )
    if tokens == 0:
        raise RequestError(
            f"none of the {len(scores.names)} documents has a token that counts; use a longer split"
        )
    prefix = PREFIXES[identity.measure]
    result = {"documents": float(len(scores.names)), "tokens": tokens, "bytes": size}
    apart = identity.measure in ("masked", "choice", *PROBES)
    if identity.measure not in PROBES:
        result[f"{prefix}nats_per_token"] = nats / tokens
    if not apart:
        per_token = nats / tokens
        result[f"{prefix}perplexity"] = math.exp(per_token) if per_token < 700 else math.inf
        if identity.lossless and size:
            result[f"{prefix}bits_per_byte"] = nats / math.log(2) / size
    if not math.isnan(correct):
        result[f"{prefix}accuracy" if apart else f"{prefix}token_accuracy"] = correct / tokens
    return result


def write_scores(folder: Path, name: str, scores: Scores, identity: MetricIdentity) -> Path:
    """Writes `NAME.json` (totals and identity) and `NAME.npz` (the sums per document, no pickle),
    each atomically.

    Args:
      folder: a run's `evals/`; made if missing.
      name: such as `validation-2000`.

    Returns:
      The path of the JSON file, which is written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sums = {field: getattr(scores, field) for field in ("nats", "tokens", "correct", "bytes")}
    temporary = folder / f".{name}.{os.getpid()}"
    with temporary.open("wb") as file:
        np.savez(file, **sums, names=np.array(scores.names, np.str_))
    os.replace(temporary, folder / f"{name}.npz")
    metrics = {
        key: value if math.isfinite(value) else None
        for key, value in totals(scores, identity).items()
    }
    text = json.dumps({"metrics": metrics, "identity": identity.to_dict()}, indent=2)
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, folder / f"{name}.json")
    return folder / f"{name}.json"


def read_scores(path: Path) -> Scores:
    """Reads the `NAME.npz` of `write_scores`.

    Raises:
      RequestError: if there is no such file.
    """
    if not path.is_file():
        raise RequestError(f"{path} does not exist; run `ablax evaluate` on that run")
    with np.load(path, allow_pickle=False) as file:
        sums = {field: file[field] for field in ("nats", "tokens", "correct", "bytes")}
        return Scores(**sums, names=tuple(file["names"].tolist()))
