"""Models of pipelines: runs, and checkpoints of which a run is made once."""

import json
import pathlib

import jax
import numpy as np
import pytest

import tiny_checkpoints
from ablax.config import RequestError
from ablax.interop import importing
from ablax.interop.hub import Source
from ablax.pipelines import source
from ablax.pipelines.pipeline import pipeline


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "gpt2"
    tiny_checkpoints.written("gpt2", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "ask:"}))
    return folder


@pytest.fixture
def made(monkeypatch, tmp_path) -> list[str]:
    """The folders that were imported, into a cache of the test's own."""
    monkeypatch.setenv("ABLAX_CACHE", str(tmp_path / "cache"))
    found: list[str] = []

    def watched(folder, workdir, **options):
        found.append(folder)
        return importing.import_hf(folder, workdir, **options)

    monkeypatch.setattr(source, "import_hf", watched)
    return found


def test_a_checkpoint_becomes_a_run_once(checkpoint, made, monkeypatch, tmp_path):
    """Catches: an import for each pipeline; a cache that gives the old weights of a folder that changed; a chat
    template that goes with its folder.
    """
    first, run = source.open_model(str(checkpoint))
    assert run is not None
    assert run.parent == tmp_path / "cache" / "hf"
    again, same = source.open_model(checkpoint)
    assert (same, len(made)) == (run, 1)
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    chat = pipeline("chat", str(checkpoint), max_new_tokens=2)
    assert chat.options.chat_template == "ask:"
    assert (run / "tokenizer" / "chat_template.jinja").read_text() == "ask:"
    (checkpoint / "merely.txt").write_text("changed")
    assert source.open_model(checkpoint)[1] != run
    assert len(made) == 2
    commit = Source("owner/name", checkpoint, "0123456789abcdef0123")
    monkeypatch.setattr(source, "locate", lambda name, revision: commit)
    assert source.open_model("owner/name")[1] == run.with_name("owner--name-0123456789abcdef")
    assert source.open_model("owner/name", revision="main")[1] is not None
    assert len(made) == 3


def test_what_is_no_model_is_refused(made, monkeypatch, tmp_path):
    """Catches: a mistyped folder of a command that is looked for in the network."""

    def never(*arguments):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(source, "locate", never)
    for wrong in (tmp_path / "nothing", tmp_path, str(tmp_path)):
        with pytest.raises(RequestError, match="holds no run"):
            pipeline("text-generation", model=wrong)
    with pytest.raises(RequestError, match="has no revision"):
        pipeline("text-generation", model=tmp_path, revision="main")
    monkeypatch.undo()
    with pytest.raises(RequestError, match="is no folder"):
        pipeline("text-generation", model="./nothing")
