"""The limit on a test's processor time holds."""

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).resolve().parent
# A limit that a tenth of a second passes, so that trying it is cheap.
BODY = """
import subprocess, sys, time
import processor_time, pytest

processor_time.LIMIT_SECONDS = 0.1
BURN = "import time\\nwhile time.process_time() < 0.15: pass"

def burn():
    end = time.process_time() + 0.15
    while time.process_time() < end:
        pass

def test_works():
    burn()

def test_child_works():
    subprocess.run([sys.executable, "-c", BURN], check=True)

def test_waits():
    time.sleep(0.15)

def test_is_quick():
    pass

@pytest.mark.slow
def test_is_marked():
    burn()

def test_fails_anyway():
    burn()
    raise ZeroDivisionError
"""


QUIET = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "300"}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The outcome of each test of BODY, and the lines of pytest's summary."""
    folder = tmp_path_factory.mktemp("session")
    (folder / "test_body.py").write_text(BODY)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow:\n")
    options = ["-p", "processor_time", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "--tb=no", "-rf", *options],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **QUIET, "PYTHONPATH": str(TESTS)},
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("test_body.py::")]
    return {words[0].partition("::")[2]: words[1] for words in lines}, [
        line for line in done.stdout.splitlines() if line.startswith("FAILED ")
    ]


def test_only_work_beyond_the_limit_fails(session):
    """Catches wall time, children that are not counted, and a limit that replaces a test's own failure."""
    outcomes, said = session
    assert outcomes == {
        "test_works": "FAILED",
        "test_child_works": "FAILED",
        "test_waits": "PASSED",
        "test_is_quick": "PASSED",
        "test_is_marked": "PASSED",
        "test_fails_anyway": "FAILED",
    }
    why = {name: line for name in outcomes for line in said if f"::{name} - " in line}
    assert "took 0." in why["test_works"]
    assert "mark it slow" in why["test_child_works"]
    assert "ZeroDivisionError" in why["test_fails_anyway"]


def test_this_session_has_the_limit(request):
    """Catches: a hook that no conftest loads."""
    import processor_time

    hooks = request.config.pluginmanager.hook.pytest_runtest_call.get_hookimpls()
    assert processor_time.pytest_runtest_call in [hook.function for hook in hooks]
