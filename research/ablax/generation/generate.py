"""Text in, text out: prompts are encoded, continued by an engine, decoded, cut at stop strings."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from ablax import placement
from ablax.config import RequestError
from ablax.data.tokenizer import Tokenizer
from ablax.generation.beams import Beams
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
from ablax.generation.prompts import Prompt, check_tokens, encode_prompt, tokens_to_add
from ablax.generation.samplers import row_keys
from ablax.generation.sampling import Controls, Sampling


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of an engine, after all was checked; lists have one entry per prompt."""

    prompts: list[list[int]]
    settings: list[Sampling]
    limits: list[int]
    ends: Ends
    alternatives: int


def _check(
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    stop: Sequence[str],
    stop_tokens: Sequence[int],
    alternatives: int,
    samples: int,
    beams: Beams,
) -> None:
    if isinstance(prompts, str):
        raise RequestError(f"prompts={prompts[:40]!r} must be a list of texts, even of one")
    if samples < 1:
        raise RequestError(f"num_return_sequences={samples} must be at least 1")
    if isinstance(stop, str) or not all(stop):
        raise RequestError(f"stop={stop!r} must be a list of strings that are not empty")
    most = min(ALTERNATIVES[-1], tokenizer.vocab_size)
    if not 0 <= alternatives <= most:
        raise RequestError(f"alternatives={alternatives} must be in [0, {most}]")
    check_tokens("stop_tokens", stop_tokens, tokenizer.vocab_size)
    if beams.num_beams == 1:
        return
    if samples > beams.num_beams:
        raise RequestError(
            f"num_return_sequences={samples} exceeds num_beams={beams.num_beams}; follow as many beams"
        )
    if stop:
        raise RequestError(
            f"stop={list(stop)!r} is not looked for by a search: use stop_tokens, or num_beams=1"
        )


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


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
    for batch in _batches(prompts, batch_rows):
        read = engine.read(batch, alternatives)
        found += [measured_prompt(ids, read, row, alternatives) for row, ids in enumerate(batch)]
    return found


def _sampled(
    engine: Engine,
    tokenizer: Tokenizer,
    asked: Asked,
    batch: Sequence[tuple[int, int]],
    seed: int,
) -> list[Completion]:
    """The completions number s of prompts p, for pairs (p, s)."""
    inputs = [asked.prompts[p] for p, _ in batch]
    texts = [Detokenizer(tokenizer, prompt) for prompt in inputs]
    watch = functools.partial(stopped, texts, asked.ends) if asked.ends.texts else None
    decoded = engine.decode(
        inputs,
        row_keys(seed, *np.array(batch).T),
        Controls.stack([asked.settings[p].controls(asked.ends.ids) for p, _ in batch]),
        [asked.limits[p] for p, _ in batch],
        watch,
        asked.alternatives,
    )
    rows = enumerate(texts)
    return [completion(text, decoded, row, asked.ends, asked.alternatives) for row, text in rows]


def _searched(
    engine: Engine, tokenizer: Tokenizer, asked: Asked, batch: Sequence[int], beams: Beams
) -> list[list[Completion]]:
    """The best completions of each prompt, the best first."""
    inputs = [asked.prompts[p] for p in batch]
    settings = [dataclasses.replace(asked.settings[p], temperature=0.0) for p in batch]
    decoded = engine.search(
        inputs,
        Controls.stack([one.controls(asked.ends.ids) for one in settings]),
        [asked.limits[p] for p in batch],
        beams,
        asked.alternatives,
    )
    assert decoded.scores is not None
    found = []
    for place, prompt in enumerate(inputs):
        text, first = Detokenizer(tokenizer, prompt), place * beams.num_beams
        rows = range(first, first + beams.num_beams)
        found.append(
            [
                completion(text, decoded, row, asked.ends, asked.alternatives)
                for row in rows
                if np.isfinite(decoded.scores[row])
            ]
        )
    return found


def complete(
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    sampling: Sampling | Sequence[Sampling] | None = None,
    beams: Beams | None = None,
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
      beams: search in place of sampling, if there are several; of `sampling` only penalties and biases act then.
      num_return_sequences: completions per prompt; the first n do not change when more are asked
        for. A search gives its best ones, fewer if there are no more.
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
    beams = beams or Beams()
    _check(tokenizer, prompts, stop, stop_tokens, alternatives, num_return_sequences, beams)
    samples = 1 if beams.num_beams > 1 else num_return_sequences
    settings = _settings(sampling, len(prompts), samples, tokenizer.vocab_size)
    encoded = [encode_prompt(tokenizer, prompt, add_bos) for prompt in prompts]
    limits = tokens_to_add(encoded, max_new_tokens, max_length, engine.max_length)
    ends = Ends(tokenizer.specials.eos, tuple(stop_tokens), tuple(stop))
    asked = Asked(encoded, settings, limits, ends, alternatives)
    # Prompts of like length share a batch, so that little is padded.
    order = sorted(range(len(encoded)), key=lambda p: len(encoded[p]))
    results: list[list[Completion]] = [[] for _ in prompts]
    if beams.num_beams > 1:
        for one in settings:
            one.check_no_filter()
        for batch in _batches(order, max(1, batch_rows // beams.num_beams)):
            found = _searched(engine, tokenizer, asked, batch, beams)
            for p, completions in zip(batch, found, strict=True):
                results[p] = completions[:num_return_sequences]
    else:
        pairs = [(p, s) for p in order for s in range(num_return_sequences)]
        for batch in _batches(pairs, batch_rows):
            found = _sampled(engine, tokenizer, asked, batch, seed)
            for (p, _), one in zip(batch, found, strict=True):
                results[p].append(one)
    if not echo:
        return results
    echoes = _echoes(engine, encoded, alternatives, batch_rows)
    return [
        [dataclasses.replace(one, prompt=own) for one in completions]
        for own, completions in zip(echoes, results, strict=True)
    ]


def generate(
    module: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    hyper: Mapping[str, Any],
    cache_dtype: str | None = None,
    over: placement.Over = contextlib.nullcontext,
    **options: Any,
) -> list[list[Completion]]:
    """Continues prompts with a causal Linen module.

    Args:
      params: the module's parameters.
      hyper: the model's traced knobs.
      cache_dtype: of a Transformer's keys and values, float32 or bfloat16 (half the memory, a little noise); the
        model's when None.
      over: says which devices share the work; see `placement.over`.
      options: see `complete`.

    Raises:
      RequestError: see `complete`.
    """
    limit = position_limit(module)
    engine = Compiled(module, params, hyper, tokenizer.vocab_size, limit, cache_dtype, over)
    return complete(engine, tokenizer, prompts, **options)
