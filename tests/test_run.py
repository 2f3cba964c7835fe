"""The run folder: locks, JSON that is whole or absent, moving aside."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from ablax.config import RequestError
from ablax.run import RunFolder, code_state, write_json

HOLD = """
import sys, time
from ablax.run import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_cannot_write_one_folder(tmp_path):
    """Catches a lock that outlives a killed process, and one that is not taken."""
    research = pathlib.Path(__file__).parent.parent / "research"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(research)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(RequestError, match=f"another process \\(pid {holder.pid} on"),
        RunFolder(tmp_path).lock(),
    ):
        pass
    holder.kill()
    holder.wait()
    with RunFolder(tmp_path).lock():
        pass


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    write_json(path, {"x": 2, "p": pathlib.Path("q")})
    assert json.loads(path.read_text()) == {"x": 2, "p": "q"}
    assert list(tmp_path.iterdir()) == [path]


def test_set_aside_keeps_everything(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.set_aside() is None
    moved = []
    for number in range(2):  # twice in one second
        write_json(folder.path / "config.json", {"number": number})
        moved.append(folder.set_aside())
    assert [json.loads((m / "config.json").read_text())["number"] for m in moved] == [0, 1]


def test_not_a_run(tmp_path):
    with pytest.raises(RequestError, match="holds no run"):
        RunFolder(tmp_path).require()


def test_half_a_line_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [record["step"] for record in RunFolder(tmp_path).metrics()] == [1, 2]


def test_code_state_has_the_commit_of_its_own_code(tmp_path):
    """Catches: the commit of a user's project, in whose folder Ablax is installed, taken for Ablax's."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for name in ("mine", "installed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("x = 1\n")
    for command in (["init", "-q"], ["add", "mine"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    assert len(code_state(tmp_path / "mine")["commit"]) == 40
    assert "commit" not in code_state(tmp_path / "installed")


def test_code_state_sees_an_edit(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    before = code_state(tmp_path)["sha256"]
    (tmp_path / "a.py").write_text("x = 2\n")
    assert code_state(tmp_path)["sha256"] != before
