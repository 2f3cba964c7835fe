"""Feature extraction: texts in, what a model holds at their tokens out."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from ablax.config import RequestError
from ablax.evaluation.states import hidden
from ablax.generation.decoders import position_limit
from ablax.generation.steps import bucket, row_bucket
from ablax.model import Model
from ablax.pipelines.options import Truncation, changed, check_reading, listed, shortest

LAST = 1.0
"""Depth of the layer that the head reads."""


@dataclasses.dataclass(frozen=True)
class FeatureOptions:
    """Arguments of a feature-extraction pipeline.

    Attributes:
      pooling: one vector per text: the "mean" over its tokens, or that of the first ("cls"; not of a causal model,
        whose first token sees no other). None: one per token.
      normalize: vectors of length 1.
      truncation: of a text with more tokens than the model reads, True cuts the end off, "stride" reads windows that
        overlap by half (each token in the second half of one, or in the first window), False refuses it.
      max_length: tokens that are read at most, fewer than the model could.
      return_tensors: arrays in place of lists.
      batch_size: texts that are read together.
    """

    pooling: Literal["mean", "cls"] | None = None
    normalize: bool = False
    truncation: Truncation = False
    max_length: int | None = None
    return_tensors: bool = False
    batch_size: int = 8

    def __post_init__(self):
        check_reading(self.batch_size, self.truncation, self.max_length)
        if self.pooling not in (None, "mean", "cls"):
            raise RequestError(f"pooling={self.pooling!r} must be 'mean', 'cls' or None")


@dataclasses.dataclass(frozen=True)
class Window:
    """Some tokens of a text, of which those from `counted` on are asked about."""

    text: int
    tokens: list[int]
    counted: int


class FeatureExtraction:
    """`pipeline("feature-extraction")`: the states that a model's head reads.

    Args:
      model: one with layers.
      **defaults: of the calls' options (see `FeatureOptions`).

    Raises:
      RequestError: if the model has no states, or for an unknown or impossible option.
    """

    TASK = "feature-extraction"

    def __init__(self, model: Model, **defaults: Any):
        if not callable(getattr(model.module, "features", None)):
            raise RequestError(f"a {model.kind} has no states to extract; take a neural model")
        self.model, self.tokenizer = model, model.tokenizer
        self.options = changed(FeatureOptions(), defaults, self.TASK)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The features of a text, or of several.

        Args:
          inputs: a text, or several.
          **options: see `FeatureOptions`.

        Returns:
          Of one text nested lists [1][T][D], with `pooling` [D]; of several a list of these. <bos> and <eos> are among
          the T tokens where the model was trained with them.

        Raises:
          RequestError: for an empty text or one that is too long, or a pooling that says nothing.
        """
        texts, alone = listed(inputs, self.TASK)
        asked = changed(self.options, options, self.TASK)
        if asked.pooling == "cls" and self.model.config.objective.CAUSAL:
            raise RequestError(
                "pooling='cls' is the state of the first token, which sees no other in a causal model; take 'mean'"
            )
        windows = [
            window
            for number, text in enumerate(texts)
            for window in self._windows(number, text, asked)
        ]
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for window, states in zip(windows, self._read(windows, asked.batch_size), strict=True):
            parts[window.text].append(states[window.counted :])
        results = [self._result(np.concatenate(states), asked) for states in parts]
        return results[0] if alone else results

    def _windows(self, number: int, text: str, asked: FeatureOptions) -> Iterator[Window]:
        specials, causal = self.tokenizer.specials, self.model.config.objective.CAUSAL
        first = [] if specials.bos is None or (causal and not self.model.marked) else [specials.bos]
        last = [] if specials.eos is None or causal else [specials.eos]
        ids = [*first, *self.tokenizer.encode(text).tolist(), *last]
        limit = shortest(position_limit(self.model.module), asked.max_length)
        if not ids:
            raise RequestError(f"text {number} is empty; give some")
        if limit is None or len(ids) <= limit:
            yield Window(number, ids, 0)
        elif asked.truncation == "stride":
            done, stride = 0, max(1, limit // 2)
            while done < len(ids):
                end = min(len(ids), done + (stride if done else limit))
                start = max(0, end - limit)
                yield Window(number, ids[start:end], done - start)
                done = end
        elif asked.truncation:
            yield Window(number, [*ids[: limit - len(last)], *last], 0)
        else:
            raise RequestError(
                f"text {number} has {len(ids)} tokens; {limit} are read: shorten it, or truncation=True (cuts the end) "
                "or 'stride' (reads windows)"
            )

    def _read(self, windows: list[Window], batch_size: int) -> list[np.ndarray]:
        """States float32 [T D] of each window. Those of like length share a batch, so that little is padded."""
        model, found = self.model, [np.zeros(0)] * len(windows)
        order = sorted(range(len(windows)), key=lambda number: len(windows[number].tokens))
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            longest = max(len(windows[number].tokens) for number in batch)
            shape = (row_bucket(len(batch)), bucket(longest))
            tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
            for row, number in enumerate(batch):
                length = len(windows[number].tokens)
                tokens[row, :length], segments[row, :length] = windows[number].tokens, 1
            positions = np.arange(shape[1], dtype=np.int32) * segments
            inputs = {"tokens": tokens, "positions": positions, "segment_ids": segments}
            states = np.asarray(
                hidden(model.module, model.params, model.hyper, inputs, LAST, model.layout)
            )
            for row, number in enumerate(batch):
                found[number] = states[row, : len(windows[number].tokens)]
        return found

    def _result(self, states: np.ndarray, asked: FeatureOptions) -> Any:
        """What is returned of a text's states [T D]."""
        if asked.pooling == "mean":
            states = states.mean(axis=0)
        elif asked.pooling == "cls":
            states = states[0]
        if asked.normalize:
            lengths = np.linalg.norm(states, axis=-1, keepdims=True)
            states = states / np.maximum(lengths, np.finfo(np.float32).tiny)
        states = states if asked.pooling else states[None]
        return states if asked.return_tensors else states.tolist()
