"""`ablax chat`: answers, commands, and what ends what."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import pytest

import ablax
from ablax import cli
from ablax.commands.chat import HELP, Conversation, talk
from ablax.config import RequestError
from ablax.experiment import base

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class Echo:
    """A chat that says the last message back, of which the last four messages fit."""

    def __init__(self, stop_after=None):
        self.calls, self.stop_after = [], stop_after

    def fit(self, messages, **options):
        return [], max(0, len(messages) - 4)

    def stream(self, messages, **options):
        self.calls.append(types.SimpleNamespace(messages=messages, **options))
        for number, piece in enumerate(messages[-1]["content"].split(" ")):
            if number == self.stop_after:
                raise KeyboardInterrupt
            yield piece


@pytest.fixture
def conversation():
    return Conversation(Echo(), {"seed": 3, "temperature": 1.0})


def said(monkeypatch, conversation, *lines, terminal=False):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    talk(conversation, terminal)


def test_a_conversation(conversation, monkeypatch, capsys):
    """Catches: a history without the answers; the same draw for each answer; an empty line that is answered."""
    said(monkeypatch, conversation, "hello you", "", "again")
    assert capsys.readouterr().out == "helloyou\nagain\n"
    first, second = conversation.chat.calls
    assert (first.seed, second.seed, first.do_sample) == (3, 4, True)
    assert [m["role"] for m in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1]["content"] == "helloyou"


def test_commands(conversation, monkeypatch, capsys, tmp_path):
    """Catches: /reset that forgets the system; a command that is answered as a message."""
    file = tmp_path / "talk.json"
    lines = ["/system be kind", "a", "/temperature 0", "/seed 7", "b", f"/save {file}", "/reset"]
    said(monkeypatch, conversation, *lines, "c", "/help", "/quit", "never")
    _, b, c = conversation.chat.calls
    assert (b.seed, b.temperature, b.do_sample) == (7, 0.0, False)
    assert [m["content"] for m in b.messages] == ["be kind", "a", "a", "b"]
    assert [m["content"] for m in c.messages] == ["be kind", "c"]
    kept = json.loads(file.read_text())["messages"]
    assert [m["content"] for m in kept] == ["be kind", "a", "a", "b", "b"]
    told = capsys.readouterr()
    assert told.out == "a\nb\nc\n"
    assert all(name in told.err for name in HELP)


def test_what_no_longer_fits_is_told(conversation, monkeypatch, capsys):
    """Catches: messages that the model does not see, and nobody knows."""
    said(monkeypatch, conversation, "a", "b", "c", "d")
    told = [line for line in capsys.readouterr().err.splitlines() if "no longer fit" in line]
    assert [line.split()[3] for line in told] == ["1", "3"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/sed 3", "did you mean '/seed'?"),
        ("/seed x", "/seed takes a number, not 'x'"),
        ("/temperature -1", "temperature=-1.0"),
        ("/save", "/save takes a file's name"),
        ("/save {}/there", "exists; choose another name"),
        ("/save {}/there/x", "cannot be written"),
    ],
)
def test_a_wrong_command(conversation, monkeypatch, capsys, tmp_path, line, told):
    """In a terminal one types another; a script is told by the exit code. Catches: a file that is overwritten."""
    (tmp_path / "there").write_text("mine")
    line = line.format(tmp_path)
    with pytest.raises(RequestError) as error:
        said(monkeypatch, conversation, line, "hello")
    assert told in str(error.value)
    typed = iter([line, "hello"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, None) or _end())
    talk(conversation, terminal=True)
    assert told in capsys.readouterr().err
    assert conversation.chat.calls[-1].messages[-1]["content"] == "hello"
    assert (tmp_path / "there").read_text() == "mine"


def _end():
    raise EOFError


def test_what_was_shown_is_kept(conversation, monkeypatch):
    """Catches: an interrupt between showing and keeping, which loses what is on the screen."""

    def shown(piece="", file=None, **options):
        if piece and file is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", shown)
    conversation.answer("one two")
    assert conversation.messages[1]["content"] == "one"


def test_an_interrupt_stops_the_answer_only(monkeypatch, capsys):
    """Catches: Ctrl-C that ends the program, or loses what was said."""
    conversation = Conversation(Echo(stop_after=1), {"seed": 0, "temperature": 1.0})
    said(monkeypatch, conversation, "one two", "b")
    told = capsys.readouterr()
    assert told.out == "one\nb\n"
    assert "stopped" in told.err
    assert conversation.messages[1]["content"] == "one"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A run that loads fast, and talks as long as one lets it."""
    place = tmp_path_factory.mktemp("chat")
    (place / "text.txt").write_text("\n".join(f"the {n}th line says abc" for n in range(60)))
    source = f"text:{place / 'text.txt'}"
    config = base(tokenizer="byte", model="ngram", source=source)
    config.data.source.document, config.data.split.validation = "line", 0.2
    config.data.document_marks = False
    config.writers.tensorboard = False
    ablax.train(config, place / "run", progress=False)
    return place / "run"


def test_in_a_process_of_its_own(run, tmp_path):
    """No terminal: lines in, answers out while they are made; a real interrupt. Catches: an answer that is held back
    until it is whole; an interrupt that a thread swallows.
    """
    command = [sys.executable, "-m", "ablax.cli", "chat", f"--workdir={run}", "--platform=cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "research")}
    process = subprocess.Popen(
        [*command, "--max_new_tokens=1000000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # nothing is left in a buffer that `communicate` does not see
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"the 5th line\n")
    process.stdin.flush()
    begun = process.stdout.read(8)  # while it goes on
    process.send_signal(signal.SIGINT)
    file = tmp_path / "talk.json"
    rest, said = process.communicate(f"/save {file}\n".encode(), timeout=60)
    assert process.returncode == 0, said.decode()
    assert b"stopped" in said
    messages = json.loads(file.read_text())["messages"]
    # The interrupt may come between a piece's being kept and its being said.
    assert messages[1]["content"].startswith((begun + rest).decode().rstrip("\n"))
    assert messages[1]["content"]


def test_exit_codes(run, monkeypatch, capsys):
    """Of a script: 0 at the end, 2 for what is refused, one line each."""
    command = ["chat", f"--workdir={run}", "--max_new_tokens=2", "--platform=cpu"]
    monkeypatch.setattr("sys.stdin", io.StringIO("the\n"))
    assert cli.main(command) == cli.DONE
    assert capsys.readouterr().out.endswith("\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("/nothing\n"))
    assert cli.main(command) == cli.REFUSED
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert cli.main([*command, "--top_p=2"]) == cli.REFUSED
    assert cli.main(["chat", f"--workdir={run.parent}"]) == cli.REFUSED
