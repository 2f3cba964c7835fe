"""scripts/environment decides: the accelerator by the driver, the way to `.venv` and the installer by what is there.

The real script runs with a PATH that holds only fakes, which write down how they were called.
"""

import pathlib
import shutil
import signal
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOLS = ("bash", "cat", "cksum", "dirname", "env", "grep", "head", "mkdir", "cp", "sed", "sh")
PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) exit {old} ;;
  *ensurepip*) exit {bare} ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac
echo "python $*" >>{log}
"""
UV = """#!/bin/sh
[ "$1" = venv ] && mkdir -p "$5/bin" && cp "{python}" "$5/bin/python"
case "$*" in *--torch-backend*) [ {offline} = 0 ] || exit 2 ;; esac
echo "uv $*" >>{log}
"""


class Checkout:
    """A copy of what the script reads, and a PATH of fakes."""

    def __init__(self, folder: pathlib.Path):
        self.root, self.bin, self.log = folder / "check out", folder / "bin", folder / "log"
        (self.root / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("scripts/environment", "setup.cfg", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root / name)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)

    def fake(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def python(self, old: bool = False, bare: bool = False) -> None:
        self.fake("python3", PYTHON.format(old=int(old), bare=int(bare), log=self.log))

    def uv(self, offline: bool = False) -> None:
        python = self.bin / "python3"
        self.fake("uv", UV.format(python=python, log=self.log, offline=int(offline)))

    def driver(self, version: str) -> None:
        known = f"case $1 in --query-gpu=driver_version) echo {version}; exit 0;; esac"
        self.fake("nvidia-smi", f"#!/bin/sh\n{known}\nexit 1\n")

    def run(self, call: str) -> subprocess.CompletedProcess:
        script = f'set -euo pipefail; source "{self.root}/scripts/environment"; {call}'
        return subprocess.run(
            [str(self.bin / "bash"), "-c", script],
            env={"PATH": str(self.bin)},
            capture_output=True,
            text=True,
            timeout=20,
        )

    def calls(self) -> list[str]:
        """What was called for, without the compilation of imports, whose order is not fixed."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        lines = [line.replace(str(self.root), "ROOT") for line in lines]
        return [line for line in lines if " -c import " not in line]


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("driver", "asked", "extra"),
    [
        ("535.104.05", "auto", "cuda"),
        ("579.99", "auto", "cuda"),
        ("580.65.06", "auto", "cuda13"),
        ("580.65.06", "cpu", ""),
        ("580.65.06", "tpu", "tpu"),
        ("580.65.06", "cuda", "cuda13"),
        (None, "cuda", "cuda"),
    ],
)
def test_the_driver_chooses_the_plugin(checkout, driver, asked, extra):
    """Catches: the newest plugin on an older driver, which JAX cannot load; a request that is overruled."""
    if driver is not None:
        checkout.driver(driver)
    done = checkout.run(f"accelerator_extra {asked}")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, extra, "")


@pytest.mark.parametrize("smi", [None, "echo 'NVIDIA-SMI has failed'; exit 9", "echo; exit 0"])
@pytest.mark.skipif(pathlib.Path("/dev/accel0").exists(), reason="this machine has a TPU")
def test_no_driver_is_the_cpu(checkout, smi):
    """Catches: a failing nvidia-smi that ends the script, or whose message is taken for a version."""
    if smi is not None:
        checkout.fake("nvidia-smi", f"#!/bin/sh\n{smi}\n")
    done = checkout.run("accelerator_extra auto")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_pip_installs_once(checkout):
    """One call with every extra. Catches: a second installation, or one without the constraints."""
    checkout.python()
    checkout.driver("580.65.06")
    for _ in range(2):
        done = checkout.run("ensure_environment dev auto")
        assert done.returncode == 0, done.stderr
    made, installed = checkout.calls()
    assert made == "python -m venv ROOT/.venv"
    assert installed.startswith("python -m pip install ")
    assert installed.endswith(" -c ROOT/constraints.txt -e ROOT[dev,cuda13]")


@pytest.mark.parametrize(
    ("extras", "offline"), [("dev", False), ("dev", True), ("dev,sweeps", False)]
)
def test_uv_installs_where_it_is(checkout, extras, offline):
    """Catches: pip beside uv; a CUDA build of PyTorch on a CPU; giving up where PyTorch's index is out of reach."""
    checkout.python()
    checkout.uv(offline)
    done = checkout.run(f"ensure_environment {extras} cpu")
    assert done.returncode == 0, done.stderr
    calls = checkout.calls()
    assert calls.pop(0) == "python -m venv ROOT/.venv"
    assert calls.pop().endswith(
        f" --python ROOT/.venv/bin/python -c ROOT/constraints.txt -e ROOT[{extras}]"
    )
    assert ["torch==" in call for call in calls] == ([] if offline else [True])


def test_uv_makes_the_environment_that_python_cannot(checkout):
    """Debian without python3-venv. Catches: half an environment that the next call takes for a whole one."""
    checkout.python(bare=True)
    refused = checkout.run('ensure_environment ""')
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[1:] == [
        "bash: python3 cannot make environments; "
        "install its venv package (Debian: apt install python3-venv) or uv"
    ]
    assert not (checkout.root / ".venv").exists()
    checkout.uv()
    done = checkout.run('ensure_environment "" cpu')
    assert done.returncode == 0, done.stderr
    made, installed = checkout.calls()
    assert made == "uv venv --quiet --python python3 ROOT/.venv"
    assert installed.endswith(" -e ROOT")


def test_requests_that_cannot_be_met_are_one_line(checkout):
    """Catches: a Python that is too old, or a mistyped accelerator, that is found out by a traceback."""
    checkout.python(old=True)
    done = checkout.run('ensure_environment ""')
    assert done.returncode == 2
    assert done.stderr.count("\n") == 2  # after "Installing ..."
    assert "Python 3.11 or newer was not found" in done.stderr
    done = checkout.run("ensure_environment dev gpu")
    assert done.returncode == 2
    assert done.stderr == "bash: --accelerator=gpu must be cpu, cuda or tpu\n"
    assert checkout.calls() == []


SAVES = """#!/usr/bin/env python3
import os, signal, sys, time
def save(*_):
    time.sleep(0.2)
    os.write(2, b"saved\\n")  # print may be at work already
    sys.exit({code})
signal.signal(signal.{name}, save)
print("command runs", file=sys.stderr, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_the_quickstart_passes_signals_on(tmp_path, name, code):
    """Sent to the script alone, as a scheduler does. Catches: a shell that dies and leaves its command running; one
    that goes on with the next command; exit code 1 in place of "saved, run again"."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("bench*"))
    (tmp_path / "scripts" / "environment").write_text(
        f'root="{tmp_path}"\nensure_environment() {{ :; }}\n'
    )
    command = tmp_path / ".venv" / "bin" / "ablax"
    command.parent.mkdir(parents=True)
    command.write_text(SAVES.format(name=name, code=code))
    command.chmod(0o755)
    script = [str(tmp_path / "scripts" / "quickstart")]
    process = subprocess.Popen(script, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    said = iter(process.stderr.readline, "")
    assert any(line == "command runs\n" for line in said)
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=20) == code
    assert process.stderr.read() == "saved\n"
