"""Chat: a conversation in, the assistant's next message out."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ablax.config import RequestError
from ablax.generation.decoders import position_limit
from ablax.model import Model
from ablax.pipelines.chat_template import Jinja, Message, Plain, Template, check_messages
from ablax.pipelines.options import changed, shortest
from ablax.pipelines.streaming import stripped, tell
from ablax.pipelines.text_generation import TextGeneration, TextOptions

ANSWER = 256
"""Tokens of an answer at most, if nothing is said."""

FIXED = {
    "num_return_sequences": 1,
    "num_beams": 1,
    "add_special_tokens": None,
    "return_tensors": False,
    "return_log_probs": False,
    "alternatives": 0,
    "echo": False,
}
"""What a chat leaves as it is: one answer, as text, to what its template writes."""


@dataclasses.dataclass(frozen=True)
class ChatOptions(TextOptions):
    """Arguments of a chat, beside those of `TextOptions`.

    Attributes:
      chat_template: in Jinja; None: the model's own, or the plain dialogue of `Plain` if it has none.
      truncation: True drops the oldest messages that leave no room for `max_new_tokens` (without it for 256, or half of
        what fits), up to the next one of the user; the system's stay, and so does the last. False refuses them.
    """

    chat_template: str | None = None

    def __post_init__(self):
        super().__post_init__()
        for name, value in FIXED.items():
            if getattr(self, name) != value:
                raise RequestError(
                    f"a chat gives one answer as text: leave {name}={getattr(self, name)} out"
                )


class Chat:
    """`pipeline("chat")`: a causal model answers.

    Args:
      model: a causal model.
      **defaults: of the calls' options (see `ChatOptions`).

    Raises:
      RequestError: if the model is not causal, or for an unknown or impossible option.
    """

    TASK = "chat"

    def __init__(self, model: Model, **defaults: Any):
        self.generator = TextGeneration(model)
        self.model, self.tokenizer = model, model.tokenizer
        self.options = changed(ChatOptions(), defaults, self.TASK)

    def __call__(self, messages: Any, *, streamer: Any = None, **options: Any) -> Any:
        """Answers a conversation, or each of several.

        Args:
          messages: dicts with `role` (system, user, assistant) and `content`, the user's last; a text alone is the
            user's. Or a list of such lists.
          streamer: gets the answer to one conversation in pieces, see `tell`.
          **options: see `ChatOptions`.

        Returns:
          `{"role": "assistant", "content": ...}`, white space around the content left out; of several a list of them.

        Raises:
          RequestError: for messages that are none, or are too long.
        """
        several = isinstance(messages, (list, tuple)) and any(
            isinstance(one, (list, tuple)) for one in messages
        )
        if streamer is not None:
            if several:
                raise RequestError("streamer= takes one conversation, not several")
            return _answer(tell(streamer, self.stream(messages, **options)))
        asked = changed(self.options, options, self.TASK)
        template = _template(asked)
        prompts = [self.fit(one, **options)[0] for one in (messages if several else [messages])]
        found = self.generator.complete(prompts, **self._generation(asked, template))
        answers = [_answer(completions[0].text.strip()) for completions in found]
        return answers if several else answers[0]

    def stream(self, messages: Any, **options: Any) -> Iterator[str]:
        """Says the answer while it is made; the pieces together are the content that a call returns.

        Raises:
          RequestError: see `__call__`.
        """
        asked = changed(self.options, options, self.TASK)
        ids, _ = self.fit(messages, **options)
        return stripped(self.generator.stream(ids, **self._generation(asked, _template(asked))))

    def fit(self, messages: Any, **options: Any) -> tuple[list[int], int]:
        """The prompt's ids, and how many messages had to be dropped for it.

        Raises:
          RequestError: see `__call__`.
        """
        asked = changed(self.options, options, self.TASK)
        template, left, dropped = _template(asked), check_messages(messages), 0
        fits = self._fits(asked)
        while True:
            ids = template.encode(self.tokenizer, left)
            if fits is None or len(ids) <= (room := fits - self._added(asked)):
                return ids, dropped
            shorter = _without_oldest(left)
            if not asked.truncation or shorter is None:
                remedy = (
                    "shorten the last one, or lower max_new_tokens"
                    if shorter is None
                    else "truncation=True drops the oldest"
                )
                raise RequestError(
                    f"the messages have {len(ids)} tokens, and beside the answer there is room for {room}: {remedy}"
                )
            dropped, left = dropped + len(left) - len(shorter), shorter

    def _fits(self, asked: ChatOptions) -> int | None:
        """Tokens of a conversation and its answer together, at most; None: any number."""
        return shortest(position_limit(self.model.module), asked.max_length)

    def _added(self, asked: ChatOptions) -> int:
        """Tokens of an answer at most."""
        if asked.max_new_tokens is not None:
            return asked.max_new_tokens
        fits = self._fits(asked)
        return ANSWER if fits is None else min(ANSWER, max(1, fits // 2))

    def _generation(self, asked: ChatOptions, template: Template) -> dict[str, Any]:
        """The options of the generator."""
        names = [field.name for field in dataclasses.fields(TextOptions)]
        given = {name: getattr(asked, name) for name in names}
        return given | {
            "stop_strings": (*asked.ends(None).texts, *template.stops),
            "max_new_tokens": self._added(asked),
            "truncation": False,
        }


def _answer(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _template(asked: ChatOptions) -> Template:
    return Plain() if asked.chat_template is None else Jinja(asked.chat_template)


def _without_oldest(messages: list[dict[str, str]]) -> list[dict[str, str]] | None:
    """The messages without the oldest turn: from the next one of the user on; None if that is the last."""
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    if len(users) < 2:
        return None
    told = [message for message in messages[: users[1]] if message["role"] == "system"]
    return [*told, *messages[users[1] :]]


__all__ = ["Chat", "ChatOptions", "Message"]
