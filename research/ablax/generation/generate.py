"""Text in, text out: prompts are encoded, continued by an engine, decoded, cut at stop strings."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from ablax.config import RequestError
from ablax.data.tokenizer import Tokenizer
from ablax.generation.decoders import position_limit
from ablax.generation.loop import Compiled, Decoded, Engine
from ablax.generation.samplers import Sampling, row_keys

DEFAULT_NEW_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Completion:
    """One continuation of a prompt.

    Attributes:
      text: what follows the prompt, without <eos>, cut where a stop string begins.
      tokens: the ids that were chosen, up to <eos> or the token that completed a stop string, both
        included.
      log_probs: nats, one per token, under the model before temperature and filters.
      finish_reason: `eos`, `stop` (a stop string) or `length`.
    """

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str


def encode_prompt(tokenizer: Tokenizer, text: str, add_bos: bool) -> list[int]:
    """The ids of a prompt, behind <bos> if the tokenizer has one and `add_bos` is set.

    Raises:
      RequestError: if nothing is left to condition on.
    """
    ids = tokenizer.encode(text).tolist()
    bos = tokenizer.specials.bos
    if bos is not None and (add_bos or not ids):
        ids.insert(0, bos)
    if not ids:
        raise RequestError("the prompt is empty and the tokenizer has no <bos>; give some text")
    return ids


def tokens_to_add(
    prompts: Sequence[Sequence[int]], wanted: int | None, max_length: int | None
) -> int:
    """How many tokens each prompt gets at most: `wanted`, else as many as fit behind the longest
    prompt, `DEFAULT_NEW_TOKENS` at most.

    Raises:
      RequestError: if a prompt leaves no room for them.
    """
    if wanted is not None and wanted < 1:
        raise RequestError(f"max_new_tokens={wanted} must be at least 1")
    if max_length is None or not prompts:
        return wanted or DEFAULT_NEW_TOKENS
    longest = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    room = max_length - len(prompts[longest])
    if room < (wanted or 1):
        asked = f"with max_new_tokens={wanted} that exceeds" if wanted else "that leaves no room in"
        remedy = "lower max_new_tokens, " if wanted else ""
        raise RequestError(
            f"prompt {longest} has {len(prompts[longest])} tokens; {asked} the model's {max_length}: "
            f"shorten the prompt, {remedy}or train with a larger data.sequence_length"
        )
    return wanted or min(DEFAULT_NEW_TOKENS, room)


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


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins, if any occurs."""
    places = [place for place in map(text.find, stop) if place >= 0]
    return min(places, default=None)


def completion(
    detokenize: Detokenizer, decoded: Decoded, row: int, stop: Sequence[str], eos: int | None
) -> Completion:
    """Cuts one row at its end: <eos>, a stop string (it may span tokens), or the last token."""
    count = int(decoded.counts[row])
    tokens = decoded.tokens[row, :count]
    text = detokenize(tokens)
    reason = "eos" if count and tokens[-1] == eos else "length"
    place = find_stop(text, stop)
    if place is not None:
        text, reason = text[:place], "stop"
        low, high = 1, count  # the fewest tokens whose text has the stop string
        while low < high:
            middle = (low + high) // 2
            found = find_stop(detokenize(tokens[:middle]), stop) is not None
            low, high = (low, middle) if found else (middle + 1, high)
        count = low
    log_probs = decoded.log_probs[row, :count].tolist()
    return Completion(text, tuple(tokens[:count].tolist()), tuple(log_probs), reason)


def complete(
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    num_return_sequences: int = 1,
    seed: int = 0,
    stop: Sequence[str] = (),
    add_bos: bool = True,
    batch_rows: int = 32,
) -> list[list[Completion]]:
    """Continues each prompt with any engine (see `generate` for neural models).

    Args:
      max_new_tokens: at most this many tokens per completion; None: as many as fit behind the longest
        prompt, 64 at most.
      sampling: how tokens are chosen; None is plain sampling.
      num_return_sequences: completions per prompt; the first n do not change when more are asked
        for.
      seed: sample s of prompt p depends on (seed, p, s), its prompt and the sampling, on nothing
        else.
      stop: strings that end a completion; they are not part of its text.
      add_bos: put the tokenizer's <bos>, if any, before the prompt. An empty prompt always gets it.
      batch_rows: rows that are decoded together.

    Returns:
      For each prompt, its completions.

    Raises:
      RequestError: for a prompt that does not fit, an empty one without <bos>, or a value out of
        range.
    """
    sampling = sampling or Sampling()
    if isinstance(prompts, str):
        raise RequestError(f"prompts={prompts[:40]!r} must be a list of texts, even of one")
    if num_return_sequences < 1:
        raise RequestError(f"num_return_sequences={num_return_sequences} must be at least 1")
    if isinstance(stop, str) or not all(stop):
        raise RequestError(f"stop={stop!r} must be a list of strings that are not empty")
    if sampling.temperature == 0 and num_return_sequences > 1:
        raise RequestError(
            f"num_return_sequences={num_return_sequences} with temperature=0 would repeat one "
            "completion; raise the temperature or ask for one"
        )
    encoded = [encode_prompt(tokenizer, text, add_bos) for text in prompts]
    max_new_tokens = tokens_to_add(encoded, max_new_tokens, engine.max_length)
    controls, eos = sampling.controls(), tokenizer.specials.eos
    # Prompts of like length share a batch, so that little is padded.
    order = sorted(range(len(encoded)), key=lambda p: len(encoded[p]))
    rows = [(p, s) for p in order for s in range(num_return_sequences)]
    results: dict[tuple[int, int], Completion] = {}
    for first in range(0, len(rows), batch_rows):
        batch = rows[first : first + batch_rows]
        inputs = [encoded[p] for p, _ in batch]
        texts = [Detokenizer(tokenizer, prompt) for prompt in inputs]

        def watch(decoded: Decoded, texts=texts) -> np.ndarray:
            counts = decoded.counts
            found = [
                find_stop(text(decoded.tokens[row, : counts[row]]), stop) is not None
                for row, text in enumerate(texts)
            ]
            return np.array(found, bool)

        keys = row_keys(seed, *np.array(batch).T)
        decoded = engine.decode(
            inputs, keys, controls, eos, max_new_tokens, watch if stop else None
        )
        for row, key in enumerate(batch):
            results[key] = completion(texts[row], decoded, row, stop, eos)
    return [[results[p, s] for s in range(num_return_sequences)] for p in range(len(prompts))]


def generate(
    module: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    hyper: Mapping[str, Any],
    max_length: int | None = None,
    **options: Any,
) -> list[list[Completion]]:
    """Continues prompts with a causal Linen module.

    Args:
      params: the module's parameters.
      hyper: the model's traced knobs.
      max_length: tokens that prompt and continuation may have together; None: as many as the module
        has positions for.
      options: see `complete`.

    Raises:
      RequestError: see `complete`.
    """
    limit = position_limit(module) if max_length is None else max_length
    engine = Compiled(module, params, hyper, tokenizer.vocab_size, limit)
    return complete(engine, tokenizer, prompts, **options)
