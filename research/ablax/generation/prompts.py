"""What is asked for: prompts as token ids, and how many tokens each may get."""

from collections.abc import Sequence

import numpy as np

from ablax.config import RequestError
from ablax.data.tokenizer import Tokenizer

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
    check_tokens("prompts", ids, tokenizer.vocab_size)
    return ids


def check_tokens(name: str, tokens: Sequence[int], vocab_size: int) -> None:
    """Raises RequestError if an id is not in the vocabulary."""
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
