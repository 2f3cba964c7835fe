"""Talks with a trained model in the terminal: answers on stdout while they are made, all else on stderr.

Lines that begin with / are commands; /help lists them. Ctrl-C stops an answer, Ctrl-D ends. Without a terminal each
line of stdin is a message, and one that is refused ends the program with exit code 2.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from ablax.commands import flags, output

HELP = {
    "/help": "what can be typed",
    "/reset": "forget the conversation; what the system says stays",
    "/system TEXT": "what the model is told before the conversation; without TEXT nothing",
    "/seed N": "seed of what is drawn; each answer draws anew",
    "/temperature X": "0 takes the likeliest token",
    "/save FILE": "write the conversation as JSON",
    "/quit": "end, like Ctrl-D",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax chat`."""
    flags.add_workdir(parser)
    parser.add_argument("--system", help="what the model is told before the conversation")
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        help="tokens of an answer at most (default: 256, or half of what the model reads)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="0 takes the likeliest token (default 1)",
    )
    parser.add_argument("--top_k", type=int, default=0, help="keep the k likeliest tokens")
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        help="keep the likeliest tokens that have this probability together",
    )
    parser.add_argument(
        "--repetition_penalty",
        type=float,
        default=1.0,
        help="above 1 makes tokens that occurred less likely",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn (default 0)")
    flags.add_step(parser)
    flags.add_platform(parser)
    flags.add_extend(parser)


@dataclasses.dataclass
class Conversation:
    """What was said so far, and how the model answers.

    Attributes:
      chat: a `Chat`.
      options: of its calls; `seed` grows with each answer.
      messages: without the system's.
      dropped: the oldest messages that the last answer was made without.
      saved: the file that this conversation was written to.
    """

    chat: Any
    options: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, str]] = dataclasses.field(default_factory=list)
    dropped: int = 0
    saved: Path | None = None

    def all_messages(self) -> list[dict[str, str]]:
        """The system's first."""
        told = [{"role": "system", "content": self.system}] if self.system else []
        return [*told, *self.messages]

    def answer(self, text: str) -> None:
        """Says the answer to a message on stdout. Ctrl-C stops it; what was said by then stays.

        Raises:
          RequestError: if the message does not fit; it is forgotten then.
        """
        asked = [*self.all_messages(), {"role": "user", "content": text}]
        options = {**self.options, "truncation": True}
        options["do_sample"] = options["temperature"] > 0
        _, dropped = self.chat.fit(asked, **options)
        if dropped > self.dropped:
            output.say(f"the oldest {dropped} messages no longer fit; the model does not see them")
        self.dropped, said = dropped, ""
        pieces = self.chat.stream(asked, **options)
        try:
            for piece in pieces:
                said += piece  # before an interrupt can come between: what was shown is kept
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            output.say("stopped")
        finally:
            pieces.close()
            print(flush=True)
        self.options["seed"] += 1
        self.messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": said},
        ]

    def command(self, line: str) -> bool:
        """Does what a line with / says; False if it says to end.

        Raises:
          RequestError: if there is no such command, or what follows it is wrong.
        """
        from ablax.config import RequestError, suggest

        names = [text.partition(" ")[0] for text in HELP]
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name not in names:
            raise RequestError(f"unknown command {name!r}{suggest(name, names)}")
        if name == "/help":
            for text, what in HELP.items():
                output.say(f"{text:<15} {what}")
        elif name == "/reset":
            self.messages, self.dropped = [], 0
        elif name == "/system":
            self.system = rest or None
        elif name == "/save":
            self._save(rest)
        elif name != "/quit":
            self._set(name.removeprefix("/"), rest)
        return name != "/quit"

    def _set(self, name: str, text: str) -> None:
        from ablax.config import RequestError
        from ablax.pipelines.chat import ChatOptions

        try:
            value = int(text) if name == "seed" else float(text)
        except ValueError:
            raise RequestError(f"/{name} takes a number, not {text!r}") from None
        dataclasses.replace(ChatOptions(), **{name: value})  # which refuses what is out of range
        self.options[name] = value

    def _save(self, text: str) -> None:
        from ablax.config import RequestError
        from ablax.run import write_json

        path = Path(text).expanduser().resolve()
        if not text or path.is_dir():
            raise RequestError("/save takes a file's name")
        if path.exists() and path != self.saved:
            raise RequestError(f"{path} exists; choose another name")
        try:
            write_json(path, {"messages": self.all_messages()})
        except OSError as error:
            raise RequestError(f"{path} cannot be written: {error.strerror}") from error
        self.saved = path
        output.say(f"saved as {path}")


def read_line(terminal: bool) -> str | None:
    """The next line without its end; None after the last."""
    if terminal:
        try:
            return input("> ")
        except EOFError:
            return None
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def talk(conversation: Conversation, terminal: bool) -> None:
    """Answers line by line until there are no more.

    Raises:
      RequestError: if a line is refused, and nobody is there to type another.
    """
    from ablax.config import RequestError

    while True:
        try:
            line = read_line(terminal)
            if line is None:
                break
            if line.startswith("/"):
                if not conversation.command(line):
                    break
            elif line.strip():
                conversation.answer(line)
        except KeyboardInterrupt:
            output.say("/quit or Ctrl-D ends")
        except RequestError as error:
            if not terminal:
                raise
            output.say(str(error))


def run(args: argparse.Namespace) -> None:
    """Talks until /quit or the end of stdin."""
    from ablax.devices import ensure_accelerator
    from ablax.pipelines.pipeline import pipeline

    step, extend = flags.checkpoint_step(args.step), flags.extensions(args.extend)
    ensure_accelerator(args.platform)
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
    options = {name: getattr(args, name) for name in names}
    chat = pipeline(
        "chat",
        args.workdir,
        step=step,
        extend=extend,
        trust_unverified=args.trust_unverified,
        **options,
    )
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        import readline  # noqa: F401 - `input` edits the line with it

        output.say(f"talks with {args.workdir}; /help lists commands, Ctrl-C stops an answer")
    talk(Conversation(chat, options, args.system), terminal)
