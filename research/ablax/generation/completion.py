"""Completions: tokens that an engine chose, as text that is cut where it ends."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from ablax.data.tokenizer import Tokenizer
from ablax.generation.loop import Decoded

Alternatives = tuple[tuple[tuple[int, float], ...], ...]
"""For each token the likeliest ones at its place: (id, log-probability) pairs, the likeliest first."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Tokens of a prompt, and what the model gave them.

    Attributes:
      tokens: the ids, <bos> included where it was put.
      log_probs: nats, each given the tokens before it; None for the first.
      alternatives: at each place but the first, if they were asked for.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float | None, ...]
    alternatives: Alternatives = ()


@dataclasses.dataclass(frozen=True)
class Completion:
    """One continuation of a prompt.

    Attributes:
      text: what follows the prompt, without <eos> or a stop token, cut where a stop string begins.
      tokens: the ids that were chosen, up to <eos>, a stop token or the token that completed a stop string,
        which are included.
      log_probs: nats, one per token, under the model before temperature and filters.
      finish_reason: `eos`, `stop` (a stop string or token) or `length`.
      alternatives: at each place, if they were asked for.
      prompt: what the model gave the prompt's own tokens, if that was asked for.
      score: of a search, the log-probability / length ** length_penalty; else None.
    """

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str
    alternatives: Alternatives = ()
    prompt: Measured | None = None
    score: float | None = None


class Detokenizer:
    """Text of the tokens behind a prompt, as it reads after that prompt (word pieces keep their
    spaces).
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
        specials = tokenizer.specials
        self.tokenizer = tokenizer
        self.marks = {specials.bos, specials.eos, specials.pad} - {None}
        self.prompt = self._plain(prompt)
        self.before = tokenizer.decode(self.prompt)

    def _plain(self, tokens: Iterable[int]) -> list[int]:
        return [int(token) for token in tokens if int(token) not in self.marks]

    def __call__(self, tokens: Iterable[int]) -> str:
        plain = self._plain(tokens)
        whole = self.tokenizer.decode(self.prompt + plain)
        # A prompt that ends inside a character decodes differently once the character is complete.
        if whole.startswith(self.before):
            return whole[len(self.before) :]
        return self.tokenizer.decode(plain)


@dataclasses.dataclass(frozen=True)
class Ends:
    """What ends a continuation.

    Attributes:
      eos: the tokenizer's <eos>, or None.
      tokens: ids of other tokens that do.
      texts: strings that do.
    """

    eos: int | None = None
    tokens: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens that end a continuation."""
        return self.tokens if self.eos is None else (self.eos, *self.tokens)

    def find(self, text: str) -> int | None:
        """Where the first stop string begins, if any occurs."""
        places = [place for place in map(text.find, self.texts) if place >= 0]
        return min(places, default=None)


def alternatives_of(decoded: Decoded, row: int, count: int, wanted: int) -> Alternatives:
    """The `wanted` likeliest tokens at the first `count` places of a row."""
    if not wanted:
        return ()
    tokens = decoded.top_tokens[row, :count, :wanted].tolist()
    log_probs = decoded.top_log_probs[row, :count, :wanted].tolist()
    return tuple(tuple(zip(*place, strict=True)) for place in zip(tokens, log_probs, strict=True))


def completion(
    detokenize: Detokenizer, decoded: Decoded, row: int, ends: Ends, alternatives: int = 0
) -> Completion:
    """Cuts one row at its end: <eos>, a stop token, a stop string (it may span tokens), or the last token."""
    count = int(decoded.counts[row])
    tokens = decoded.tokens[row, :count]
    last = int(tokens[-1]) if count else None
    reason = "length" if last not in ends.ids else "eos" if last == ends.eos else "stop"
    text = detokenize(tokens[: count - (reason != "length")])
    if ends.find(text) is not None:
        low, high = 1, count  # the fewest tokens whose text has a stop string
        while low < high:
            middle = (low + high) // 2
            found = ends.find(detokenize(tokens[:middle])) is not None
            low, high = (low, middle) if found else (middle + 1, high)
        # What a chunk says after them does not count: another stop string may begin before this one.
        count, text, reason = low, detokenize(tokens[:low]), "stop"
        text = text[: ends.find(text)]
    return Completion(
        text,
        tuple(tokens[:count].tolist()),
        tuple(decoded.log_probs[row, :count].tolist()),
        reason,
        alternatives_of(decoded, row, count, alternatives),
        score=None if decoded.scores is None else float(decoded.scores[row]),
    )


def stopped(texts: Sequence[Detokenizer], ends: Ends, decoded: Decoded) -> np.ndarray:
    """bool [B]: in which rows a stop string has been said."""
    said = (
        ends.find(text(decoded.tokens[row, : decoded.counts[row]])) is not None
        for row, text in enumerate(texts)
    )
    return np.fromiter(said, bool, len(texts))


def measured_prompt(
    prompt: Sequence[int], decoded: Decoded, row: int, alternatives: int = 0
) -> Measured:
    """A prompt with what the model gave the tokens behind its first."""
    count = int(decoded.counts[row])
    log_probs = (None, *decoded.log_probs[row, :count].tolist())
    return Measured(tuple(prompt), log_probs, alternatives_of(decoded, row, count, alternatives))
