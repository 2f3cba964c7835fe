"""`ablax new` writes a project that works."""

import json
import os
import subprocess
import sys

import pytest

from ablax import cli
from ablax.config import RequestError
from ablax.experiment import read_experiment
from ablax.project import write_project
from ablax.sweeps.resolution import resolve_plan


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user") / "my_idea"
    write_project(folder)
    return folder


def test_files_are_written_and_named(tmp_path, capsys):
    assert cli.main(["new", str(tmp_path / "mine")]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert "experiment.py" in files
    assert "test_sigmoid_attention.py" in files
    assert (tmp_path / "mine" / "README.md").read_text().startswith("# mine\n")


@pytest.mark.parametrize("there", [True, False])
def test_the_next_step_can_be_taken(tmp_path, capsys, monkeypatch, there):
    """Catches: `python -m pytest` where nobody installed it, as after scripts/quickstart."""
    if not there:
        monkeypatch.setitem(sys.modules, "pytest", None)
    assert cli.main(["new", str(tmp_path / "mine")]) == 0
    said = capsys.readouterr().err
    assert "then python -m pytest" in said
    assert ("then pip install pytest" in said) != there
    assert "    pip install pytest " in (tmp_path / "mine" / "README.md").read_text()


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    """Catches: overwriting a user's files."""
    (tmp_path / "mine.py").write_text("precious")
    with pytest.raises(RequestError, match="not an empty folder"):
        write_project(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_every_cell_of_its_plan_resolves(project):
    """Catches: a template that a renamed knob broke."""
    page = read_experiment(f"{project / 'experiment.py'}:tiny")
    resolved = resolve_plan(page.get_config(), page.get_sweep()).experiments
    assert len(resolved) == 6
    kinds = [type(experiment.model.attention).__name__ for experiment in resolved.values()]
    assert kinds == ["DotProductAttention"] * 3 + ["SigmoidAttention"] * 3


def test_its_own_test_passes(project):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout
