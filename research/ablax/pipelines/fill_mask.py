"""Filling masks: a text with masks in, what may stand there out."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ablax.config import RequestError
from ablax.generation.decoders import position_limit
from ablax.generation.filling import (
    MASK_TEXT,
    MaskedFiller,
    carries_spaces,
    encode_masked,
    mask_token,
)
from ablax.model import Model
from ablax.pipelines.options import Truncation, changed, check_reading, listed, shortest


@dataclasses.dataclass(frozen=True)
class FillOptions:
    """Arguments of a fill-mask pipeline.

    Attributes:
      top_k: candidates per mask.
      targets: the words that are candidates, each one token; None: the whole vocabulary.
      truncation: of a text with more tokens than the model reads, True cuts the end off (never a mask), "stride" reads
        as much as fits around each mask, False refuses it.
      max_length: tokens that are read at most, fewer than the model could.
      batch_size: texts that are read together.
    """

    top_k: int = 5
    targets: str | tuple[str, ...] | list[str] | None = None
    truncation: Truncation = False
    max_length: int | None = None
    batch_size: int = 8

    def __post_init__(self):
        check_reading(self.batch_size, self.truncation, self.max_length)
        if self.targets is not None and not self.targets:
            raise RequestError("targets is empty; name a word, or leave it out")


@dataclasses.dataclass(frozen=True)
class Row:
    """What is read of a text at once.

    Attributes:
      text: its number.
      first: the place in the text where it begins, in tokens.
      places: those of the masks that are filled by it, in the text.
    """

    text: int
    first: int
    tokens: list[int]
    places: list[int]


class FillMask:
    """`pipeline("fill-mask")`: a masked model says what stands at `[MASK]` (or `<mask>`).

    Args:
      model: a model that was trained with masks.
      **defaults: of the calls' options (see `FillOptions`).

    Raises:
      RequestError: if the model was not trained with masks, or for an unknown or impossible option.
    """

    TASK = "fill-mask"

    def __init__(self, model: Model, **defaults: Any):
        model.require(False, "fill masks")
        self.model, self.tokenizer = model, model.tokenizer
        self.options = changed(FillOptions(), defaults, self.TASK)

    def __call__(self, inputs: Any, **options: Any) -> list[Any]:
        """Fills the masks of a text, or of several.

        Args:
          inputs: a text, or several.
          **options: see `FillOptions`.

        Returns:
          Of a text with one mask a list of dicts, the likeliest first: `score` (its probability), `token` (its id),
          `token_str`, and `sequence`, the text with it. Of one with several masks a list of such lists, each with the
          other masks left. Of several texts a list with one of these per text.

        Raises:
          RequestError: for a text without a mask or too long, or a target that is no token.
        """
        texts, alone = listed(inputs, self.TASK)
        asked = changed(self.options, options, self.TASK)
        vocab_size = self.tokenizer.vocab_size
        if not 1 <= asked.top_k <= vocab_size:
            raise RequestError(f"top_k={asked.top_k} must be in [1, {vocab_size}] (the vocabulary)")
        encoded = [encode_masked(self.tokenizer, text) for text in texts]
        targets = [self._targets(text, asked) for text in texts]
        rows = [row for i, (ids, at) in enumerate(encoded) for row in self._rows(i, ids, at, asked)]
        found: list[list[Any]] = [[] for _ in texts]
        count = vocab_size if asked.targets is not None else asked.top_k
        for row, candidates, probabilities in self._filled(rows, count, asked.batch_size):
            ids, places = encoded[row.text]
            for place in row.places:
                wanted = targets[row.text][places.index(place)]
                chosen = [
                    (int(token), float(score))
                    for token, score in zip(
                        candidates[place - row.first], probabilities[place - row.first], strict=True
                    )
                    if wanted is None or int(token) in wanted
                ]
                found[row.text].append(
                    [self._candidate(ids, place, *one) for one in chosen[: asked.top_k]]
                )
        results = [masks[0] if len(masks) == 1 else masks for masks in found]
        return results[0] if alone else results

    def _rows(
        self, text: int, ids: list[int], places: list[int], asked: FillOptions
    ) -> Iterator[Row]:
        """What is read of a text."""
        limit = shortest(position_limit(self.model.module), asked.max_length)
        if limit is None or len(ids) <= limit:
            yield Row(text, 0, ids, places)
        elif asked.truncation == "stride":
            for place in places:
                first = min(max(0, place - limit // 2), len(ids) - limit)
                yield Row(text, first, ids[first : first + limit], [place])
        elif asked.truncation:
            tail = ids[-1:] if ids[-1] == self.tokenizer.specials.eos else []
            kept = [*ids[: limit - len(tail)], *tail]
            if places[-1] >= limit - len(tail):
                raise RequestError(
                    f"text {text} has a mask at token {places[-1]} and {limit} tokens are read; truncation='stride' "
                    "reads around each mask"
                )
            yield Row(text, 0, kept, places)
        else:
            raise RequestError(
                f"text {text} has {len(ids)} tokens; {limit} are read: shorten it, or truncation=True (cuts the end) "
                "or 'stride' (reads around each mask)"
            )

    def _filled(
        self, rows: Sequence[Row], count: int, batch_size: int
    ) -> Iterator[tuple[Row, np.ndarray, np.ndarray]]:
        """Each row with the candidates [T K] of its places and their probabilities, likeliest first."""
        model = self.model
        mask = mask_token(self.tokenizer)
        filler = MaskedFiller(model.module, model.params, model.hyper, mask, count)
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            lengths = np.array([len(row.tokens) for row in batch])
            tokens = np.zeros((len(batch), lengths.max()), np.int32)
            for number, row in enumerate(batch):
                tokens[number, : len(row.tokens)] = row.tokens
            filled = filler.fill(tokens, tokens == mask, lengths)
            yield from zip(batch, filled.candidates, filled.probabilities, strict=True)

    def _targets(self, text: str, asked: FillOptions) -> list[set[int] | None]:
        """The ids that may stand at each mask of a text; None: any."""
        before = MASK_TEXT.split(text)[:-1]
        if asked.targets is None:
            return [None] * len(before)
        words = [asked.targets] if isinstance(asked.targets, str) else list(asked.targets)
        spaced = carries_spaces(self.tokenizer)
        return [
            {self._target(word, spaced and piece.endswith(" ")) for word in words}
            for piece in before
        ]

    def _target(self, word: str, spaced: bool) -> int:
        """The id of a word, which carries the space before it where the mask stands for that too."""
        written = f" {word}" if spaced and not word.startswith(" ") else word
        ids = self.tokenizer.encode(written).tolist()
        if len(ids) != 1:
            raise RequestError(
                f"target {word!r} is {len(ids)} tokens, and a mask stands for one; leave it out"
            )
        return ids[0]

    def _candidate(self, ids: list[int], place: int, token: int, score: float) -> dict[str, Any]:
        specials = self.tokenizer.specials
        marks = {specials.bos, specials.eos}
        filled = [token if at == place else one for at, one in enumerate(ids)]
        written = [one for one in filled if one not in marks]
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token], skip_specials=False),
            "sequence": self.tokenizer.decode(written, skip_specials=False),
        }
