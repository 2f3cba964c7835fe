"""The benchmark command runs; its numbers are for a quiet machine and are not looked at here."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/benchmarks/all.py"), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT / "research")},
    )


@pytest.mark.ci
def test_quick_steps_of_all_sides(tmp_path):
    """Catches: a side that no longer fits the library's step, loop or loader."""
    done = benchmark("--quick", "--only=step", f"--json={tmp_path / 'out.json'}")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "out.json").read_text())
    names = [row["name"] for row in result["step"]]
    assert "our loop / hand-written JAX" in names
    assert "our loop / PyTorch" in names
    assert all(row["value"] > 0 for row in result["step"])
    assert set(result["machine"]) >= {"date", "cpu", "cores", "versions"}


@pytest.mark.ci
def test_quick_decoding_of_both_sides():
    """Catches: a side that no longer fits the engine or transformers."""
    done = benchmark("--quick", "--only=generate")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["generate"]
    assert [row["at_least"] for row in rows] == [None, None, 2.0] * 2
    assert all(row["value"] > 0 for row in rows)


def test_absent_data_are_skipped_with_the_reason(tmp_path):
    """Catches: a benchmark that fails, or says nothing, without the development data."""
    done = benchmark("--quick", "--only=ngram,shakespeare", f"--data={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert "train.txt is absent" in result["ngram"]["skipped"]
    assert "input.txt is absent" in result["shakespeare"]["skipped"]


def test_an_unknown_measurement_is_named():
    """Catches: a typing mistake in --only that measures nothing and looks like success."""
    done = benchmark("--only=steps")
    assert done.returncode == 2
    assert "'steps' must be of step, loader" in done.stderr
