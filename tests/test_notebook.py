"""The notebook runs from top to bottom, as a newcomer would run it."""

import importlib.util
import pathlib
import re
import sys
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).resolve().parent.parent / "experiments/notebooks/quickstart.ipynb"
ROOT = NOTEBOOK.parents[2]


def test_stored_without_outputs_and_paths():
    """Catches: a run's outputs, or a path of somebody's machine, that were committed."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not re.search(r"(?<![\w.~])/(home|work|tmp|Users|content|root)/", cell.source)
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def outputs(notebook, form):
    """Everything of one MIME type that the cells showed, or of stream `stdout`."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == form:
                found.append(output.text)
            elif form in output.get("data", {}):
                found.append(output.data[form])
    return found


@pytest.fixture
def installing(monkeypatch):
    """Runs the first code cell where Ablax is missing; returns the commands that it gave."""
    cell = next(c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def run(folder, repository=""):
        monkeypatch.chdir(folder)
        given, names = [], {}
        shell = SimpleNamespace(
            system=lambda command: given.append(command.format(**names)),
            run_line_magic=lambda name, line: given.append(f"{name} {line.format(**names)}"),
        )
        source = cell.source.replace('REPOSITORY = ""', f'REPOSITORY = "{repository}"')
        names["get_ipython"] = lambda: shell
        exec(TransformerManager().transform_cell(source), names)
        return given

    return run


@pytest.mark.parametrize("inside", [True, False])
def test_installs_the_checkout_that_is_there(installing, tmp_path, inside):
    """Opened inside one, or beside one as after `git clone` on Colab. Catches: a package index asked for `ablax`."""
    folder = tmp_path / "my clone"
    (folder / "research" / "ablax").mkdir(parents=True)
    (folder / "experiments" / "notebooks").mkdir(parents=True)
    where = folder / "experiments" / "notebooks" if inside else tmp_path
    for repository in ("", "https://example.org/a.git"):
        assert installing(where, repository) == [f'pip install --quiet "{folder}"']


def test_without_a_checkout_it_clones_or_says_what_is_missing(installing, tmp_path):
    """Catches: an installation of whatever else bears the name."""
    with pytest.raises(FileNotFoundError, match="set REPOSITORY"):
        installing(tmp_path)
    cloned, installed = installing(tmp_path, "https://example.org/a.git")
    assert cloned == 'git clone --quiet --depth=1 "https://example.org/a.git" ablax'
    assert installed == f'pip install --quiet "{tmp_path / "ablax"}"'


@pytest.mark.ci
def test_runs_and_shows_what_it_promises(tmp_path, monkeypatch):
    """At the tests' size. Catches: a cell that a renamed function broke, a model that learns nothing, no picture."""
    monkeypatch.setenv("ABLAX_NOTEBOOK_SIZE", "tiny")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "research"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    manager = AsyncKernelManager()
    manager.kernel_spec.argv[0] = sys.executable  # whatever kernel is registered on the machine
    client = NotebookClient(
        notebook, km=manager, timeout=90, resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    text = "".join(outputs(notebook, "stdout"))
    assert len(outputs(notebook, "image/png")) == 1
    (training,) = [c for c in notebook.cells if 'ablax.train(config, RUNS / "decoder")' in c.source]
    said = "".join(output.text for output in training.outputs if output.name == "stderr")
    losses = [float(x) for x in re.findall(r"validation: nats per token ([\d.]+)", said)]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert re.search(r"[\d.]+ bits per byte on held-out text", text)
    assert len(re.findall(r"'The .+'|\"The .+\"", text)) >= 2
    bits = [float(x) for x in re.findall(r"^(?:decoder|convolution) +([\d.]+) ", text, re.M)]
    assert len(bits) == 2
    assert max(bits) < 8  # a byte model that knows nothing
    assert not any(o.output_type == "error" for c in notebook.cells for o in c.get("outputs", []))
    assert "statement" in "".join(outputs(notebook, "text/plain"))
