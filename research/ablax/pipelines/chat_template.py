"""Chat templates: messages as the text that a model was trained to answer.

A template comes with a model, so it is somebody's code: Jinja's immutable sandbox runs it, as in transformers. What
people say is text, even where it spells a special token; those that the template itself writes are special.
"""

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ablax.config import RequestError
from ablax.data.tokenizer import Tokenizer

Message = Mapping[str, str]
"""`role` (system, user or assistant) and `content`."""

ROLES = ("system", "user", "assistant")
FILES = ("chat_template.jinja", "tokenizer_config.json")
NAMED = ("bos", "eos", "unk", "pad", "cls", "sep", "mask")
PRIVATE = 0xF0000
"""Where characters begin that no text has: Unicode's private plane 15."""


class Template(Protocol):
    """How messages become a prompt."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        ...

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """The ids of a prompt that the assistant's answer follows."""
        ...


def check_messages(messages: Any) -> list[dict[str, str]]:
    """The messages, copied.

    Raises:
      RequestError: if they are no list of messages, or the last one is not the user's.
    """
    if isinstance(messages, (str, Mapping)):
        messages = (
            [{"role": "user", "content": messages}] if isinstance(messages, str) else [messages]
        )
    if not isinstance(messages, (list, tuple)):
        raise RequestError(f"{str(messages)[:60]!r} is no list of messages; give one")
    found = []
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise RequestError(
                f"{where} is {str(message)[:60]!r}; write {{'role': 'user', 'content': TEXT}}"
            )
        if message["role"] not in ROLES:
            raise RequestError(
                f"{where} has role={message['role']!r}; there are: {', '.join(ROLES)}"
            )
        if not isinstance(message["content"], str):
            raise RequestError(f"{where} has a content that is no text; give a string")
        found.append(dict(message))
    if not found or found[-1]["role"] != "user":
        raise RequestError("the last message must be the user's; add what is to be answered")
    return found


@dataclasses.dataclass(frozen=True)
class Plain:
    """For models that were trained on no chats: a dialogue as people write it.

    The system's text, an empty line, then lines `User: ...` and `Assistant: ...` in turn, and `Assistant:`. An answer
    ends where another turn begins.
    """

    stops: tuple[str, ...] = ("\nUser:", "\nAssistant:")

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """See `Template`."""
        bos = tokenizer.specials.bos
        ids = tokenizer.encode(self.render(messages)).tolist()
        return ids if bos is None else [bos, *ids]

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a prompt."""
        heads = {"user": "User: ", "assistant": "Assistant: "}
        turns = [heads[m["role"]] + m["content"] for m in messages if m["role"] in heads]
        told = [m["content"] for m in messages if m["role"] not in heads]
        return "".join(f"{text}\n\n" for text in told) + "\n".join([*turns, "Assistant:"])


class _Generation(Extension):
    """`{% generation %}` marks what an assistant says; here it is what it holds."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _environment() -> ImmutableSandboxedEnvironment:
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    found.filters["tojson"] = _json
    found.globals["raise_exception"] = _refuse
    found.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return found


@dataclasses.dataclass(frozen=True)
class Jinja:
    """A template in Jinja, as tokenizers of Hugging Face have it.

    Attributes:
      source: its text.
    """

    source: str
    stops: tuple[str, ...] = ()

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """See `Template`."""
        spelled = {text: token for token, text in tokenizer.special_texts.items() if text}
        hidden = {text: chr(PRIVATE + number) for number, text in enumerate(spelled)}
        if not spelled:
            return tokenizer.encode(self.render(tokenizer, messages)).tolist()
        longest = sorted(spelled, key=len, reverse=True)
        pattern = re.compile("(" + "|".join(map(re.escape, longest)) + ")")
        kept = [
            {**message, "content": pattern.sub(lambda m: hidden[m[0]], message["content"])}
            for message in messages
        ]
        back = {ord(character): text for text, character in hidden.items()}
        ids: list[int] = []
        for number, part in enumerate(pattern.split(self.render(tokenizer, kept))):
            if number % 2:
                ids.append(spelled[part])
            elif part:
                ids += tokenizer.encode(part.translate(back)).tolist()
        return ids

    def render(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
        """The text of a prompt, special tokens as they are written.

        Raises:
          RequestError: if the template is wrong, does what it must not, or refuses the messages.
        """
        texts, specials = tokenizer.special_texts, tokenizer.specials
        ids = {name: getattr(specials, name) for name in NAMED}
        marks = {f"{name}_token": texts[i] for name, i in ids.items() if i is not None}
        try:
            return (
                _environment()
                .from_string(self.source)
                .render(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **{"bos_token": "", "eos_token": "", **marks},
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            line = " ".join(str(error).split())
            raise RequestError(
                f"the model's chat template refuses these messages: {line}; change them, or give chat_template="
            ) from error


def template_of(folders: Sequence[Path]) -> str | None:
    """The first chat template that lies in one of some folders; None if there is none.

    Raises:
      RequestError: if a file that should name it cannot be read.
    """
    for folder in folders:
        if (folder / FILES[0]).is_file():
            return (folder / FILES[0]).read_text(encoding="utf-8")
        if (folder / FILES[1]).is_file():
            try:
                told = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
            except ValueError as error:
                raise RequestError(f"{folder / FILES[1]} cannot be read: {error}") from error
            found = told.get("chat_template")
            if isinstance(found, list):  # several, by name
                found = {one["name"]: one["template"] for one in found}.get("default")
            if found:
                return found
    return None
