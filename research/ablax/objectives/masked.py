"""Masked language modelling: predict the hidden tokens from both sides (Devlin et al. 2019, section 3.1)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from ablax.config import RequestError, knob
from ablax.objectives.batch import Batch, Losses, Vocabulary, token_spec
from ablax.objectives.causal import weighted_losses
from ablax.objectives.forward import Forward

Unit = Literal["token", "word", "span"]


@dataclasses.dataclass(frozen=True)
class MaskedConfig:
    """BERT's masked language modelling, by tokens, whole words or n-gram spans."""

    CAUSAL: ClassVar[bool] = False

    rate: float = knob(0.15, "Share of the tokens that are selected for prediction.")
    mask_share: float = knob(0.8, "Share of the selected tokens that become the mask token.")
    random_share: float = knob(
        0.1, "Share of the selected tokens that become a random ordinary token."
    )
    unit: Unit = knob(
        "token", "What is selected at once: a token, a whole word, or a span of words."
    )
    span_length: float = knob(
        3.8,
        "Words per span: mean of a geometric that is then cut at 10 (SpanBERT, Joshi et al. 2020); unit=span only.",
    )
    label_smoothing: float = knob(
        0.0, "Share of the target's probability spread evenly over the vocabulary.", traced=True
    )

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise RequestError(f"rate={self.rate} must lie between 0 and 1, both excluded")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            total = self.mask_share + self.random_share
            raise RequestError(f"mask_share + random_share = {total} must lie in [0, 1]")
        if not 1 <= self.span_length <= 10:
            raise RequestError(f"span_length={self.span_length} must lie in [1, 10] words")
        if self.label_smoothing < 0 or self.label_smoothing >= 1:
            raise RequestError(f"label_smoothing={self.label_smoothing} must lie in [0, 1)")

    def specials(self, document_marks: bool) -> tuple[str, ...]:
        """Names of the special tokens that this objective needs."""
        return ("bos", "eos", "mask") if document_marks else ("mask",)

    def transform(
        self, row: Mapping[str, np.ndarray], rng: np.random.Generator, vocabulary: Vocabulary
    ) -> dict[str, np.ndarray]:
        """A row [T+1] of a layout to a batch row [T] with hidden tokens; special tokens and padding never are."""
        targets, segments = row["tokens"][:-1], row["segment_ids"][:-1]
        ordinary = (segments != 0) & ~vocabulary.special[targets]
        selected = self.select(ordinary, vocabulary.word_starts[targets], segments, rng)
        return {
            "tokens": self.hide(targets, selected, rng, vocabulary),
            "targets": targets,
            "loss_weights": selected.astype(np.float32),
            "positions": row["positions"][:-1],
            "segment_ids": segments,
        }

    def select(
        self,
        ordinary: np.ndarray,
        starts: np.ndarray,
        segments: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Chooses about `rate` of the ordinary positions, whole units at a time.

        Args:
          ordinary: bool [T], positions that may be selected.
          starts: bool [T], positions whose token begins a word.
          segments: int [T].

        Returns:
          bool [T]. At least one position where there is an ordinary one; the last unit may exceed the budget.
        """
        budget = max(1, round(self.rate * ordinary.sum()))
        breaks = np.ones(len(starts), bool)
        breaks[1:] = starts[1:] | (segments[1:] != segments[:-1]) | ~ordinary[1:] | ~ordinary[:-1]
        if self.unit == "token":
            breaks[:] = True
        unit_of = np.cumsum(breaks) - 1
        units = np.unique(unit_of[ordinary])
        chosen = rng.permutation(units)
        if self.unit == "span":
            chosen = self._spans(units, rng)
        sizes = np.bincount(unit_of[ordinary], minlength=unit_of[-1] + 1)[chosen]
        taken = chosen[: np.searchsorted(np.cumsum(sizes), budget) + 1]
        return np.isin(unit_of, taken) & ordinary

    def _spans(self, units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The units in an order that visits random spans of neighbours, each unit once."""
        if len(units) == 0:
            return units
        starts = rng.permutation(len(units))
        lengths = np.minimum(rng.geometric(1 / self.span_length, len(units)), 10)
        spans = np.minimum(starts[:, None] + np.arange(10), len(units) - 1)
        order = spans[np.arange(10) < lengths[:, None]]
        _, first = np.unique(order, return_index=True)
        return units[order[np.sort(first)]]

    def hide(
        self,
        targets: np.ndarray,
        selected: np.ndarray,
        rng: np.random.Generator,
        vocabulary: Vocabulary,
    ) -> np.ndarray:
        """Replaces selected tokens: mostly by the mask, some by a random ordinary token, the rest not at all."""
        assert vocabulary.mask is not None, "the corpus was opened with what `specials` names"
        draw = rng.random(len(targets))
        ordinary = np.flatnonzero(~vocabulary.special)
        random_tokens = ordinary[rng.integers(len(ordinary), size=len(targets))]
        masked = selected & (draw < self.mask_share)
        replaced = selected & ~masked & (draw < self.mask_share + self.random_share)
        hidden = np.where(replaced, random_tokens, targets)
        return np.where(masked, vocabulary.mask, hidden).astype(np.int32)

    def batch_spec(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch."""
        return token_spec(batch_size, length)

    def most(self, length: int) -> int:
        """The largest number of positions that `select` can choose in a row of T."""
        # A word may be as long as the row, and the last one is taken whole.
        return max(1, round(self.rate * length)) if self.unit == "token" else length

    def loss(self, apply: Forward, batch: Batch, hyper: Mapping[str, Any]) -> Losses:
        """Sum of the cross entropies in nats over the selected positions of a batch."""
        smoothing = hyper["label_smoothing"] if self.label_smoothing != 0 else None
        (loss, metrics), carry = apply.sums(
            batch,
            lambda logits, part: weighted_losses(logits, part, smoothing),
            self.most(batch["tokens"].shape[1]),
        )
        return loss, metrics, carry
