"""What the pages promise is true: links lead somewhere, snippets run, every README command runs."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import tiny_checkpoints
from ablax.experiment import read_experiment, resolve
from compiling import flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = ("README.md", "WORKSPACE.md", "CONTRIBUTING.md", "docs/LOG.md")
SMALL = [
    "--config.training.steps=4",
    "--config.training.batch_size=2",
    "--config.data.sequence_length=16",
    "--config.data.tokenizer=byte",
    "--config.data.split.validation=0.5",
    "--config.model.num_layers=1",
    "--config.model.width=16",
    "--config.schedule.warmup=1",
]


def block(containing: str) -> str:
    """The fenced block of the README that contains a text."""
    fenced = README.split("```")[1::2]
    return next(text.partition("\n")[2] for text in fenced if containing in text)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_places_in_the_map_exist():
    text = (ROOT / "WORKSPACE.md").read_text()
    for place in re.findall(r"`((?:research|experiments|scripts|tests|docs)/[^`:]*)[`:]", text):
        assert (ROOT / place).exists(), place
    for file in re.findall(
        r"`((?:config|data|models|objectives|training|sweeps|evaluation)/\w+\.py)", text
    ):
        assert (ROOT / "research" / "ablax" / file).exists(), file


def test_tests_that_the_map_names_exist():
    """Catches: a test that was renamed or removed, and with it the law that it held."""
    text = (ROOT / "WORKSPACE.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 10
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_the_map_knows_every_place():
    """Catches: a module at the top of the package, or a script, that nobody finds."""
    text = (ROOT / "WORKSPACE.md").read_text().partition("## Axis letters")[0]
    package = ROOT / "research" / "ablax"
    for path in [*package.iterdir(), *(ROOT / "scripts").iterdir()]:
        if not path.name.startswith("_") and path.name != "py.typed":
            assert re.search(rf"[`/]{re.escape(path.name)}/?`", text), path


def test_every_environment_variable_is_in_the_table():
    """Catches: a switch that only its author knows, and one that nothing reads any more."""
    places = [ROOT / "research", ROOT / "scripts", ROOT / "experiments"]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    texts = [path.read_text() for path in files if "__pycache__" not in path.parts]
    read = {name for text in texts for name in re.findall(r"\bABLAX_[A-Z_]*[A-Z]\b", text)}
    table = (ROOT / "WORKSPACE.md").read_text().partition("## Environment variables")[2]
    table = table.partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    told = set(re.findall(r"`(ABLAX_[A-Z_]+)`", "\n".join(row.split("|")[1] for row in rows)))
    assert told == read


def experiment_page(folder: pathlib.Path) -> pathlib.Path:
    """The README's experiment, with a corpus beside it."""
    (folder / "corpus").mkdir()
    for number in range(8):
        (folder / "corpus" / f"{number}.txt").write_text(
            f"Document {number}. " + "All work and no play. " * 40
        )
    page = folder / "page.py"
    page.write_text(block("def get_sweep"))
    return page


def test_the_experiment_of_the_readme_resolves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = read_experiment(str(experiment_page(tmp_path)))
    arms = page.get_sweep()
    assert len(arms) == 9
    for overrides in arms:
        resolve(page.get_config(), overrides)


def run(command: list[str], cwd: pathlib.Path) -> None:
    """Runs an `ablax` command as a user would, from the environment of this interpreter."""
    assert command[0] == "ablax"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "research"), "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "ablax.cli", *command[1:]],
        cwd=cwd,
        env=environment,
        input="hello\n",  # what is said to `ablax chat`
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-2000:]}"


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_the_commands_of_the_readme_run(tmp_path):
    commands = re.search(r"<!-- commands:begin -->\n```\n(.*?)```", README, re.DOTALL)
    assert commands is not None
    for line in [*commands[1].splitlines(), *block("ablax verify-resume").splitlines()]:
        run(shlex.split(line), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", block("import pipeline")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "research")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.count("The ") >= 3, done.stderr[-2000:]


@pytest.mark.ci
def test_the_meshes_of_the_readme_run(tmp_path, monkeypatch):
    """On eight faked devices. A step for 256 TPUs compiles for minutes: parallel/test_compiled.py has it for 8."""
    page = experiment_page(tmp_path)
    monkeypatch.setenv("XLA_FLAGS", flags(8))
    monkeypatch.setenv("NPROC", "32")
    small = [o.replace("batch_size=2", "batch_size=8") for o in SMALL]
    lines = [line for line in block("--mesh=").splitlines() if "--topology" not in line]
    commands = [shlex.split(line.replace("FILE", page.name), comments=True) for line in lines]
    assert [command[1] for command in commands] == ["train", "inspect"]
    for command in commands:
        run([*command, *(small if command[1] == "train" else ())], tmp_path)


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_the_day_of_the_readme_runs(tmp_path):
    page = experiment_page(tmp_path)
    for line in block("ablax sweep   --config=FILE").splitlines():
        command = [part.replace("FILE", page.name) for part in shlex.split(line, comments=True)]
        if any(part.startswith("--config") for part in command):
            command += [
                o for o in SMALL if not any(o.split("=")[0] + "=" in part for part in command)
            ]
        run([*command, "--once"] if command[1] == "watch" else command, tmp_path)


@pytest.mark.ci
def test_the_pretrained_models_of_the_readme_run(tmp_path):
    """Of a folder in place of a name on the hub."""
    tiny_checkpoints.written("gpt2", tmp_path / "gpt2")
    (tmp_path / "FILE").write_text("\n".join(f"the fox {n}" * 9 for n in range(99)))
    small = [o for o in SMALL if "model" not in o and "tokenizer" not in o]
    small += ["--config.data.source.document=line"]
    for line in block("ablax import-hf").splitlines():
        command = shlex.split(line, comments=True)
        run([*command, *(small if command[1] == "train" else ())], tmp_path)


PRELUDE = f"""
from ablax.experiment import resolve
from page import get_config

small = dict(o.removeprefix("--config.").split("=") for o in {SMALL!r})
small["data.sequence_length"] = 64  # room for the prompt and what is generated
config = resolve(get_config(), small)
"""


@pytest.mark.ci
def test_the_python_of_the_readme_runs(tmp_path):
    """Catches: a call that was renamed, an argument that is gone, a result without what its comment names."""
    experiment_page(tmp_path)
    lines = block("import ablax\n").splitlines()
    for line, shown in (("model.generate(", "[0][1].text"), ("model.score(", ".bytes.tolist()")):
        (at,) = [i for i, found in enumerate(lines) if found.startswith(line)]
        lines[at] = f"print(({lines[at].partition('  #')[0]}){shown})"
    (at,) = [i for i, found in enumerate(lines) if found.startswith("ablax.runs(")]
    lines[at] = f"print([entry['status'] for entry in {lines[at]}])"
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + "\n".join(lines)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'research'}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *_, sizes, statuses = done.stdout.splitlines()
    assert json.loads(sizes) == [len("one document"), len("another")]
    assert statuses == "['finished']"


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_quickstart_in_a_fresh_clone(tmp_path):
    """The real thing: a new environment, the whole ladder, then a second call that finds it done."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            target = tmp_path / "clone" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
            target.chmod((ROOT / name).stat().st_mode)
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "XLA_FLAGS")
    }
    environment |= {"ABLAX_CACHE": str(tmp_path / "cache")}
    for expected in ("decoder", "already finished"):
        done = subprocess.run(
            ["./scripts/quickstart", "--accelerator=cpu"],
            cwd=tmp_path / "clone",
            env=environment,
            capture_output=True,
            text=True,
            timeout=800,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert expected in done.stderr
    picture = tmp_path / "clone" / "runs" / "quickstart" / "curves.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
