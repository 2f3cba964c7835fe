"""Text in, text out: prompts are encoded, continued by an engine, decoded, cut at stop strings."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from ablax.config import RequestError
from ablax.data.tokenizer import Tokenizer
from ablax.generation.completion import (
    Completion,
    Detokenizer,
    Ends,
    Measured,
    completion,
    measured_prompt,
    stopped,
)
from ablax.generation.decoders import position_limit
from ablax.generation.loop import ALTERNATIVES, Compiled, Engine
from ablax.generation.samplers import row_keys
from ablax.generation.sampling import Controls, Sampling

DEFAULT_NEW_TOKENS = 64

Prompt = str | Sequence[int]
"""A text, or its token ids as they are."""


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt, add_bos: bool) -> list[int]:
    """The ids of a prompt; those of a text behind <bos> if the tokenizer has one and `add_bos` is set.

    Raises:
      RequestError: if nothing is left to condition on, or an id is not in the vocabulary.
    """
    bos = tokenizer.specials.bos
    ids = tokenizer.encode(prompt).tolist() if isinstance(prompt, str) else list(map(int, prompt))
    if bos is not None and (not ids or (add_bos and isinstance(prompt, str))):
        ids.insert(0, bos)
    if not ids:
        raise RequestError("the prompt is empty and the tokenizer has no <bos>; give some text")
    _check_tokens("prompts", ids, tokenizer.vocab_size)
    return ids


def _check_tokens(name: str, tokens: Sequence[int], vocab_size: int) -> None:
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"{name} has token {token}; the vocabulary has ids from 0 to {vocab_size - 1}"
            )


def tokens_to_add(
    prompts: Sequence[Sequence[int]],
    wanted: int | None,
    max_length: int | None,
    limit: int | None,
) -> list[int]:
    """How many tokens each prompt gets at most.

    Without a wish as many as fit behind the longest prompt, `DEFAULT_NEW_TOKENS` at most; of two wishes both hold.

    Args:
      wanted: tokens to add.
      max_length: tokens of prompt and continuation together.
      limit: how many tokens the model can read.

    Raises:
      RequestError: if a prompt leaves no room for them.
    """
    for name, value in (("max_new_tokens", wanted), ("max_length", max_length)):
        if value is not None and value < 1:
            raise RequestError(f"{name}={value} must be at least 1")
    if max_length is not None and limit is not None and max_length > limit:
        raise RequestError(f"max_length={max_length} exceeds the model's {limit}; lower it")
    if not prompts:
        return []
    lengths = [len(prompt) for prompt in prompts]
    longest = int(np.argmax(lengths))
    head = f"prompt {longest} has {lengths[longest]} tokens"
    if max_length is not None:
        if lengths[longest] >= max_length:
            raise RequestError(f"{head}; that leaves no room in max_length={max_length}: raise it")
        return [min(max_length - length, wanted or max_length) for length in lengths]
    if limit is None:
        return [wanted or DEFAULT_NEW_TOKENS] * len(prompts)
    room = limit - lengths[longest]
    if room < (wanted or 1):
        asked = f"with max_new_tokens={wanted} that exceeds" if wanted else "that leaves no room in"
        remedy = "lower max_new_tokens, " if wanted else ""
        raise RequestError(
            f"{head}; {asked} the model's {limit}: "
            f"shorten the prompt, {remedy}or train with a larger data.sequence_length"
        )
    return [wanted or min(DEFAULT_NEW_TOKENS, room)] * len(prompts)


def _settings(
    sampling: Sampling | Sequence[Sampling] | None, prompts: int, samples: int, vocab_size: int
) -> list[Sampling]:
    """One setting per prompt."""
    if sampling is None or isinstance(sampling, Sampling):
        found = [sampling or Sampling()] * prompts
    else:
        found = list(sampling)
    if len(found) != prompts:
        raise RequestError(
            f"sampling has {len(found)} settings for {prompts} prompts; give each one"
        )
    for one in found:
        one.check_vocabulary(vocab_size)
        if one.temperature == 0 and samples > 1:
            raise RequestError(
                f"num_return_sequences={samples} with temperature=0 would repeat one completion; raise the temperature "
                "or ask for one"
            )
    return found


def _echoes(
    engine: Engine, prompts: Sequence[Sequence[int]], alternatives: int, batch_rows: int
) -> list[Measured]:
    """What the model gives each prompt's own tokens."""
    found = []
    for first in range(0, len(prompts), batch_rows):
        batch = prompts[first : first + batch_rows]
        read = engine.read(batch, alternatives)
        found += [measured_prompt(ids, read, row, alternatives) for row, ids in enumerate(batch)]
    return found


def complete(
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    sampling: Sampling | Sequence[Sampling] | None = None,
    num_return_sequences: int = 1,
    seed: int = 0,
    stop: Sequence[str] = (),
    stop_tokens: Sequence[int] = (),
    alternatives: int = 0,
    echo: bool = False,
    add_bos: bool = True,
    batch_rows: int = 32,
) -> list[list[Completion]]:
    """Continues each prompt with any engine (see `generate` for neural models).

    Args:
      prompts: texts, or token ids as they are.
      max_new_tokens: at most this many tokens per completion; None: as many as fit behind the longest
        prompt, 64 at most.
      max_length: at most this many tokens of a prompt and its completion together; with `max_new_tokens` both hold.
      sampling: how tokens are chosen, for all prompts or one each; None is plain sampling.
      num_return_sequences: completions per prompt; the first n do not change when more are asked
        for.
      seed: sample s of prompt p depends on (seed, p, s), its prompt and the sampling, on nothing
        else.
      stop: strings that end a completion; they are not part of its text.
      stop_tokens: ids that do, like the tokenizer's <eos>.
      alternatives: the likeliest tokens that are told at each place, 20 at most.
      echo: tell the log-probabilities of the prompt's own tokens too.
      add_bos: put the tokenizer's <bos>, if any, before the prompt. An empty prompt always gets it.
      batch_rows: rows that are decoded together.

    Returns:
      For each prompt, its completions.

    Raises:
      RequestError: for a prompt that does not fit, an empty one without <bos>, or a value out of
        range.
    """
    if isinstance(prompts, str):
        raise RequestError(f"prompts={prompts[:40]!r} must be a list of texts, even of one")
    if num_return_sequences < 1:
        raise RequestError(f"num_return_sequences={num_return_sequences} must be at least 1")
    if isinstance(stop, str) or not all(stop):
        raise RequestError(f"stop={stop!r} must be a list of strings that are not empty")
    most = min(ALTERNATIVES[-1], tokenizer.vocab_size)
    if not 0 <= alternatives <= most:
        raise RequestError(f"alternatives={alternatives} must be in [0, {most}]")
    _check_tokens("stop_tokens", stop_tokens, tokenizer.vocab_size)
    settings = _settings(sampling, len(prompts), num_return_sequences, tokenizer.vocab_size)
    encoded = [encode_prompt(tokenizer, prompt, add_bos) for prompt in prompts]
    limits = tokens_to_add(encoded, max_new_tokens, max_length, engine.max_length)
    ends = Ends(tokenizer.specials.eos, tuple(stop_tokens), tuple(stop))
    # Prompts of like length share a batch, so that little is padded.
    order = sorted(range(len(encoded)), key=lambda p: len(encoded[p]))
    rows = [(p, s) for p in order for s in range(num_return_sequences)]
    results: dict[tuple[int, int], Completion] = {}
    for first in range(0, len(rows), batch_rows):
        batch = rows[first : first + batch_rows]
        inputs = [encoded[p] for p, _ in batch]
        texts = [Detokenizer(tokenizer, prompt) for prompt in inputs]
        decoded = engine.decode(
            inputs,
            row_keys(seed, *np.array(batch).T),
            Controls.stack([settings[p].controls(ends.ids) for p, _ in batch]),
            [limits[p] for p, _ in batch],
            watch=(lambda found, texts=texts: stopped(texts, ends, found)) if stop else None,
            alternatives=alternatives,
        )
        for row, key in enumerate(batch):
            results[key] = completion(texts[row], decoded, row, ends, alternatives)
    if echo:
        echoes = _echoes(engine, encoded, alternatives, batch_rows)
        results = {
            (p, s): dataclasses.replace(found, prompt=echoes[p])
            for (p, s), found in results.items()
        }
    return [[results[p, s] for s in range(num_return_sequences)] for p in range(len(prompts))]


def generate(
    module: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    hyper: Mapping[str, Any],
    **options: Any,
) -> list[list[Completion]]:
    """Continues prompts with a causal Linen module.

    Args:
      params: the module's parameters.
      hyper: the model's traced knobs.
      options: see `complete`.

    Raises:
      RequestError: see `complete`.
    """
    engine = Compiled(module, params, hyper, tokenizer.vocab_size, position_limit(module))
    return complete(engine, tokenizer, prompts, **options)
