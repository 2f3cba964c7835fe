"""Text generation: prompts in, texts out."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from ablax.config import RequestError
from ablax.generation.beams import Beams
from ablax.generation.completion import Completion, Detokenizer, Ends
from ablax.generation.generate import complete
from ablax.generation.prompts import DEFAULT_NEW_TOKENS, encode_prompt
from ablax.generation.sampling import Sampling
from ablax.model import Model
from ablax.pipelines.options import Truncation, changed, check_reading, listed, shortest
from ablax.pipelines.streaming import Cutter, Watched, engine_of, pieces, tell

DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
"""Settings that act on what is drawn."""


@dataclasses.dataclass(frozen=True)
class TextOptions(Sampling, Beams):
    """Arguments of a text-generation pipeline, beside those of `Sampling` and `Beams`.

    Attributes:
      max_new_tokens, max_length: tokens that are added, and those with the prompt's, at most; both hold.
      do_sample: draw tokens; False takes the likeliest. None draws if several texts are wanted without a search, or if
        `temperature`, `top_k`, `top_p`, `min_p` or `typical_p` is set.
      num_return_sequences: texts per prompt.
      seed: of what is drawn. Another call with the same seed draws the same.
      stop_strings: texts that end a continuation and are not part of it.
      eos_token_id: ids that end it, beside the tokenizer's own.
      add_special_tokens: <bos>, if there is one, before a prompt that is a text; None: where the model's documents have
        it. An empty prompt always gets it.
      truncation: True drops the oldest tokens of a prompt that leaves no room for `max_new_tokens` (without it for 64,
        or half of what fits); <bos> stays. False refuses it.
      return_full_text: the prompt before each text.
      return_tensors: ids, `generated_token_ids`, in place of texts.
      return_log_probs: also `token_ids`, `log_probs` (nats, under the model itself), `finish_reason`, and what is asked
        for by the two that follow.
      alternatives: likeliest tokens that are told at each place, 20 at most, with their log-probabilities.
      echo: what the model gave the prompt's own tokens is told.
      batch_size: texts that are made together.
      cache_dtype: of a Transformer's keys and values, float32 or bfloat16; the model's when None.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    do_sample: bool | None = None
    num_return_sequences: int = 1
    seed: int = 0
    stop_strings: str | tuple[str, ...] | list[str] | None = ()
    eos_token_id: int | tuple[int, ...] | list[int] | None = ()
    add_special_tokens: bool | None = None
    truncation: Truncation = False
    return_full_text: bool = True
    return_tensors: bool = False
    return_log_probs: bool = False
    alternatives: int = 0
    echo: bool = False
    batch_size: int = 8
    cache_dtype: str | None = None

    def __post_init__(self):
        Sampling.__post_init__(self)
        Beams.__post_init__(self)
        check_reading(self.batch_size, self.truncation)
        if self.truncation == "stride":
            raise RequestError(
                "truncation='stride' is for tasks that read all of a text; a continuation follows its end: "
                "truncation=True"
            )
        set_ones = [name for name in DRAWING if getattr(self, name) != getattr(Sampling(), name)]
        if self.do_sample and self.num_beams > 1:
            raise RequestError(
                f"do_sample=True draws and num_beams={self.num_beams} searches; leave one out"
            )
        if self.do_sample and self.temperature == 0:
            raise RequestError("do_sample=True with temperature=0 draws nothing; leave one out")
        if self.do_sample is False and set_ones and self.temperature != 0:
            name = set_ones[0]
            raise RequestError(
                f"do_sample=False takes the likeliest token, {name}={getattr(self, name)} is for drawing; leave one out"
            )
        if self.num_return_sequences > 1 and self.num_beams == 1 and not self.draws:
            raise RequestError(
                f"num_return_sequences={self.num_return_sequences} without drawing would repeat one text: "
                f"do_sample=True, or num_beams={self.num_return_sequences}"
            )

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        if self.do_sample is not None:
            return self.do_sample
        changes = any(getattr(self, name) != getattr(Sampling(), name) for name in DRAWING)
        return (
            self.num_beams == 1
            and self.temperature != 0
            and (changes or self.num_return_sequences > 1)
        )

    def sampling(self) -> Sampling:
        """How each token is chosen."""
        names = [field.name for field in dataclasses.fields(Sampling)]
        chosen = {name: getattr(self, name) for name in names}
        if not self.draws and self.num_beams == 1:
            chosen["temperature"] = 0.0
        return Sampling(**chosen)

    def beams(self) -> Beams:
        """How texts are searched."""
        return Beams(self.num_beams, self.length_penalty, self.early_stopping)

    def ends(self, eos: int | None) -> Ends:
        """What ends a text, given the tokenizer's own id."""
        tokens, texts = self.eos_token_id, self.stop_strings
        ids = () if tokens is None else np.ravel(tokens)
        texts = (texts,) if isinstance(texts, str) else tuple(texts or ())
        return Ends(eos, tuple(int(token) for token in ids), texts)


class TextGeneration:
    """`pipeline("text-generation")`: a causal model continues prompts.

    Args:
      model: a causal model.
      **defaults: of the calls' options (see `TextOptions`).

    Raises:
      RequestError: if the model is not causal, or for an unknown or impossible option.
    """

    TASK = "text-generation"

    def __init__(self, model: Model, **defaults: Any):
        model.require(True, "generate")
        self.model = model
        self.tokenizer = model.tokenizer
        self.options = changed(TextOptions(), defaults, self.TASK)

    def __call__(self, text_inputs: Any, *, streamer: Any = None, **options: Any) -> list[Any]:
        """Continues a prompt, or each of several.

        Args:
          text_inputs: a text, or several.
          streamer: gets the new text of one prompt in pieces, see `tell`.
          **options: see `TextOptions`.

        Returns:
          Of one prompt a list with a dict per text, `generated_text` among its keys; of several a list of such lists.

        Raises:
          RequestError: for an impossible option, or a prompt that does not fit.
        """
        prompts, alone = listed(text_inputs, self.TASK, "texts (for messages there is 'chat')")
        asked = changed(self.options, options, self.TASK)
        found = self.complete(prompts, streamer=streamer, **options)
        results = [
            [self._result(prompt, one, asked) for one in completions]
            for prompt, completions in zip(prompts, found, strict=True)
        ]
        return results[0] if alone else results

    def complete(
        self, prompts: Any, *, streamer: Any = None, **options: Any
    ) -> list[list[Completion]]:
        """The same as `Completion`s: for each prompt its own, texts without the prompt.

        Args:
          prompts: a list of texts, or of lists of token ids as they are.
          streamer, **options: see `__call__`.
        """
        asked = changed(self.options, options, self.TASK)
        if isinstance(prompts, str):
            raise RequestError(f"prompts={prompts[:40]!r} must be a list of texts, even of one")
        if streamer is not None:
            if len(prompts) != 1:
                raise RequestError(f"streamer= takes the text of one prompt, not of {len(prompts)}")
            made: list[Completion] = []
            tell(streamer, self._stream(prompts[0], asked, made))
            return [made]
        encoded = [self.encode(prompt, asked) for prompt in prompts]
        return self._complete(engine_of(self.model, asked.cache_dtype), encoded, asked)

    def stream(self, text_input: Any, **options: Any) -> Iterator[str]:
        """Says the text behind a prompt while it is made; the pieces together are the text that a call returns.

        Args:
          text_input: a text, or a list of token ids.
          **options: see `TextOptions`.

        Raises:
          RequestError: see `__call__`; and for a search or several texts.
        """
        return self._stream(text_input, changed(self.options, options, self.TASK), [])

    def encode(self, prompt: Any, asked: TextOptions) -> list[int]:
        """The ids of a prompt, cut if that is asked for."""
        marked = asked.add_special_tokens
        ids = encode_prompt(self.tokenizer, prompt, self.model.marked if marked is None else marked)
        fits = shortest(engine_of(self.model).max_length, asked.max_length)
        if not asked.truncation or fits is None:
            return ids
        added = asked.max_new_tokens or min(DEFAULT_NEW_TOKENS, max(1, fits // 2))
        room = fits - added
        marks = ids[:1] if ids[0] == self.tokenizer.specials.bos else []
        if room <= len(marks):
            raise RequestError(
                f"max_new_tokens={added} leaves no room for a prompt in {fits} tokens; lower it"
            )
        return ids if len(ids) <= room else [*marks, *ids[len(ids) - room + len(marks) :]]

    def _stream(self, prompt: Any, asked: TextOptions, made: list[Completion]) -> Iterator[str]:
        """`made` gets the completion once it is whole."""
        if asked.num_beams > 1 or asked.num_return_sequences > 1:
            name = "num_beams" if asked.num_beams > 1 else "num_return_sequences"
            raise RequestError(
                f"one text is streamed at a time, {name}={getattr(asked, name)} makes several: leave it out"
            )
        engine = engine_of(self.model, asked.cache_dtype)
        encoded = self.encode(prompt, asked)
        ends = asked.ends(self.tokenizer.specials.eos)

        def work(look: Any) -> str:
            made.extend(self._complete(Watched(engine, look), [encoded], asked)[0])
            return made[0].text

        return pieces(work, Cutter(Detokenizer(self.tokenizer, encoded), ends))

    def _complete(
        self, engine: Any, encoded: list[list[int]], asked: TextOptions
    ) -> list[list[Completion]]:
        ends = asked.ends(None)
        return complete(
            engine,
            self.tokenizer,
            encoded,
            max_new_tokens=asked.max_new_tokens,
            max_length=asked.max_length,
            sampling=asked.sampling(),
            beams=asked.beams(),
            num_return_sequences=asked.num_return_sequences,
            seed=asked.seed,
            stop=ends.texts,
            stop_tokens=ends.tokens,
            alternatives=asked.alternatives,
            echo=asked.echo,
            batch_rows=asked.batch_size,
        )

    def _result(self, prompt: str, one: Completion, asked: TextOptions) -> dict[str, Any]:
        if asked.return_tensors:
            ids = self.encode(prompt, asked) if asked.return_full_text else []
            result: dict[str, Any] = {"generated_token_ids": [*ids, *one.tokens]}
        else:
            before = prompt if asked.return_full_text else ""
            result = {"generated_text": before + one.text}
        if asked.return_log_probs:
            result |= {
                "token_ids": list(one.tokens),
                "log_probs": list(one.log_probs),
                "finish_reason": one.finish_reason,
            }
            if asked.alternatives:
                result["alternatives"] = one.alternatives
            if asked.echo:
                result["prompt"] = one.prompt
        return result
