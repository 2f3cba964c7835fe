"""A package that knows Ablax, and that Ablax does not know, adds an attention variant."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from ablax.testing import check_attention

PACKAGE = pathlib.Path(__file__).resolve().parent / "extension_package"
PAGE = """
from ablax.experiment import base

def get_config():
    config = base(tokenizer="byte", source="builtin:python_reference", schedule="constant")
    config.data.sequence_length = 16
    config.model.num_layers = 1
    config.model.width = 16
    config.model.num_heads = 2
    config.training.batch_size = 4
    config.training.steps = 3
    config.evaluation.documents = 1
    config.evaluation.every = 0
    config.checkpoint.every = 0
    config.writers.every = 1
    return config
"""
# Several commands of one user in one process: starting one takes longer than its work.
SEVERAL = """
import json, sys
from ablax import cli
for command in json.loads(sys.argv[1]):
    print("exit", cli.main(command), flush=True)
"""
KIND = "sink_attention:SinkAttention"


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A folder with an experiment; the package is installed into `site`, beside Ablax."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(PACKAGE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(folder / "site")]
    done = subprocess.run([*pip, *offline, str(folder / "source")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "source")
    (folder / "page.py").write_text(PAGE)
    return folder


def run(user, *arguments):
    paths = [str(user / "site"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=user, env=environment
    )


def train(steps):
    kind = f"--config.model.attention={KIND}"
    return ["train", "--config=page.py", kind, "--workdir=run", f"--config.training.steps={steps}"]


def test_it_is_a_page_long():
    assert len((PACKAGE / "sink_attention.py").read_text().splitlines()) < 40


@pytest.fixture(scope="module")
def attention():
    spec = importlib.util.spec_from_file_location("sink_attention", PACKAGE / "sink_attention.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SinkAttention


def test_it_obeys_the_laws(attention):
    check_attention(attention)


def test_a_wrong_shape_fails_with_its_names(attention):
    """Catches: `typed` left out, so that einsum says what does not fit, or nothing does."""
    heads, keys = np.ones((2, 6, 4, 8), np.float32), np.ones((2, 6, 2, 8), np.float32)
    mask = np.ones((2, 1, 6, 6), bool)
    attend = attention().build()
    with pytest.raises(TypeCheckError, match="value") as error:
        attend(*map(jnp.asarray, (heads, keys, keys[..., :4])), mask=jnp.asarray(mask))
    assert "B S K H" in str(error.value)


def test_it_trains(user):
    """Catches: a kind from outside that a command cannot name; a source that is not kept with the run."""
    done = run(user, "-m", "ablax.cli", *train(3))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 3
    kept = user / "run" / "code" / "sink_attention.SinkAttention.py"
    assert kept.read_text() == (PACKAGE / "sink_attention.py").read_text()


def test_it_is_evaluated_samples_and_resumes(user):
    """The run of the test before, in a new process. Catches: code that is imported without being named."""
    if not (user / "run").is_dir():
        assert run(user, "-m", "ablax.cli", *train(3)).returncode == 0
    extend = f"--extend={KIND}"
    commands = [
        ["evaluate", "--workdir=run", extend],
        ["generate", "--workdir=run", "--prompt=The ", "--max_new_tokens=4", extend],
        [
            "generate",
            "--workdir=run",
            "--prompt=Th",
            "--max_new_tokens=4",
            extend.partition(":")[0],
        ],
        train(5),
        ["evaluate", "--workdir=run"],
    ]
    done = run(user, "-c", SEVERAL, json.dumps(commands))
    lines = done.stdout.splitlines()
    codes = [line for line in lines if line.startswith("exit ")]
    assert codes == ["exit 0"] * 4 + ["exit 2"], done.stderr
    assert "resuming at step 3" in done.stderr
    assert '"step": 5' in done.stdout
    refusal = done.stderr.strip().splitlines()[-1]
    assert refusal.startswith("ablax: ")
    assert f"--extend={KIND}" in refusal
    steps = [json.loads(line) for line in (user / "run" / "metrics.jsonl").open()]
    assert [r["step"] for r in steps if r["split"] == "train"] == [1, 2, 3, 4, 5]
