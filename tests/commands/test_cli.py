"""The command line: exit codes, one-line errors, start-up, and what reaches the commands."""

import json
import os
import subprocess
import sys
import time
import types

import pytest

from ablax import cli
from ablax.config import RequestError
from ablax.run import Preempted

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def ablax(*arguments, **environment):
    """The real process."""
    return subprocess.run(
        [sys.executable, "-m", "ablax.cli", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | environment,
        timeout=60,
    )


@pytest.fixture
def command(monkeypatch):
    """Replaces `ablax train` by a function of its arguments."""

    def install(function, **defaults):
        def add_arguments(parser):
            parser.add_argument("--workdir")
            parser.add_argument("--fresh", action="store_true")
            parser.set_defaults(**defaults)

        module = types.SimpleNamespace(
            add_arguments=add_arguments, run=function, __doc__="A command."
        )
        monkeypatch.setattr(cli, "command_module", lambda name: module)

    return install


def raising(error):
    def run(args):
        raise error

    return run


def test_help_is_fast_and_imports_no_jax():
    """Catches: one import of a command module at the top of cli.py."""
    code = (
        "import sys; from ablax import cli; code = cli.main(['--help']); "
        "slow = {'jax', 'numpy', 'flax', 'rich', 'ml_collections'} & set(sys.modules); "
        "print(sorted(slow)); sys.exit(code)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT
        )
        seconds.append(time.perf_counter() - start)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert min(seconds) < 0.3


def test_every_command_explains_itself_without_jax(capsys):
    """Every entry of the table is exercised. Catches: a flag whose help breaks argparse's formatting."""
    code = (
        "import sys; from ablax import cli\n"
        "for name in cli.COMMANDS: assert cli.main([name, '--help']) == 0, name\n"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ablax ") == len(cli.COMMANDS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tran"], "ablax: unknown command 'tran'; did you mean 'train'?"),
        (["zzz"], "ablax: unknown command 'zzz'; there are: train, evaluate"),
        (["watch"], "ablax: the following arguments are required: --workdir"),
        (["watch", "--workdir=x", "--onec"], "unknown argument '--onec'; did you mean '--once'?"),
        (["watch", "--workdir=x", "--config.a=1"], "takes no --config.* overrides"),
        (["watch", "--workdir=/nowhere/x"], "ablax: /nowhere/x does not exist"),
        (["report", "--workdir=/nowhere/x"], "ablax: /nowhere/x holds no sweep"),
    ],
)
def test_wrong_requests_are_one_line_and_exit_code_2(argv, message, capsys):
    assert cli.main(argv) == cli.REFUSED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_a_real_process_exits_with_2_without_a_traceback():
    done = ablax("train", "--config=/nowhere.py", "--workdir=/tmp/never")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RequestError("model.x: bad\nsecond"), 2, "ablax: model.x: bad second\n"),
        (Preempted("SIGTERM: saved at step 3"), 75, "ablax: SIGTERM: saved at step 3"),
        (KeyboardInterrupt(), 130, "ablax: interrupted\n"),
        (RuntimeError("loss is nan"), 1, "Traceback"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes."),
            1,
            "needed 4,096 bytes",
        ),
        (MemoryError("Unable to allocate 72.8 TiB for an array"), 1, "ablax: out of memory"),
    ],
)
def test_exceptions_become_exit_codes(error, code, message, command, capsys):
    command(raising(error))
    assert cli.main(["train"]) == code
    err = capsys.readouterr().err
    assert message in err
    assert ("Traceback" in err) == (message == "Traceback")


def test_overrides_reach_the_command_in_both_spellings(command):
    """Catches: `--config.a b` eating the next flag, and argparse seeing the overrides."""
    seen = []
    command(lambda args: seen.append(args), takes_overrides=True)
    arguments = ["--config.model.num_layers=6", "--workdir", "x", "--config.name", "a b", "--fresh"]
    assert cli.main(["train", *arguments]) == 0
    (args,) = seen
    assert args.overrides == {"model.num_layers": "6", "name": "a b"}
    assert (args.workdir, args.fresh) == ("x", True)


def test_flags_are_not_abbreviated(command, capsys):
    command(lambda args: None)
    assert cli.main(["train", "--work=x"]) == 2
    assert "did you mean '--workdir'?" in capsys.readouterr().err


def test_a_closed_pipe_is_no_failure():
    """Catches: output that is flushed only when Python exits, after which the exit code is 120."""
    command = (
        f"{{ sleep 0.2; {sys.executable} -m ablax.cli new --help; }}"  # the reader is gone first
    )
    shell = f"{command} | true; echo ${{PIPESTATUS[0]}}"
    buffered = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=buffered)
    assert done.stdout.strip() == "0"
    assert done.stderr == ""


def test_a_failing_driver_is_refused_by_doctor_and_train(tmp_path):
    """A real process on a machine whose nvidia-smi answers. Catches: training on the CPU with a warning."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\ncase $1 in *driver*) echo '550.54.15, NVIDIA H100';; esac\n")
    smi.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JAX_PLATFORMS": ""}
    done = ablax("doctor", **environment)
    assert done.returncode == 2, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["gpus"] == ["NVIDIA H100"]
    assert found["backend"] == "cpu"
    (problem,) = found["problems"]
    assert problem.startswith("JAX does not use NVIDIA H100: JAX has no CUDA plugin; pip install")
    assert "--platform=cpu" in problem
    assert "Traceback" not in done.stderr


def test_doctor_on_the_cpu_is_content(capsys):
    assert cli.main(["doctor", "--platform=cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backend"] == "cpu"
    assert found["matmul"]["good"]
    assert found["problems"] == []
    assert found["versions"]["jax"]
    assert found["disk"]["cache"]["free_bytes"] > 0
    assert found["compilation_cache"]


def test_doctor_notices_a_wrong_matrix_product(monkeypatch, capsys):
    """Catches: a check that cannot fail."""
    import jax.numpy as jnp

    right = jnp.matmul
    monkeypatch.setattr(jnp, "matmul", lambda a, b: right(a, b).at[3, 3].add(2e3))
    assert cli.main(["doctor", "--platform=cpu"]) == 1
    assert "a matrix product on cpu is wrong" in capsys.readouterr().err


def test_results_are_json_whatever_they_are(capsys):
    import dataclasses
    import pathlib

    import numpy as np

    from ablax.commands import output

    @dataclasses.dataclass
    class Result:
        a: float
        b: tuple

    output.emit(
        {"x": Result(float("nan"), (np.float32(0.5), np.arange(2))), "p": pathlib.Path("a")}
    )
    assert json.loads(capsys.readouterr().out) == {"x": {"a": None, "b": [0.5, [0, 1]]}, "p": "a"}
