"""Loading a run: nothing that is not what was saved is used, and nothing in its folder is executed."""

import ast
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import ablax
from ablax import cli
from ablax.config import RequestError
from ablax.experiment import base

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "research" / "ablax"


def experiment(place: pathlib.Path, **kinds):
    lines = [f"the {number}th line says {'abc' * (number % 5)}" for number in range(60)]
    (place / "text.txt").write_text("\n".join(lines))
    config = base(
        tokenizer="byte", schedule="constant", source=f"text:{place / 'text.txt'}", **kinds
    )
    config.data.source.document, config.data.split.validation = "line", 0.2
    config.data.sequence_length, config.training.batch_size, config.training.steps = 16, 4, 2
    if not kinds:
        config.model.num_layers, config.model.width, config.model.num_heads = 1, 16, 2
    config.evaluation.documents, config.evaluation.every, config.checkpoint.every = 1, 1, 1
    config.writers.tensorboard = False
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    place = tmp_path_factory.mktemp("loading")
    ablax.train(experiment(place), place / "run", progress=False)
    return place / "run"


@pytest.fixture
def copy(run: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(run, tmp_path / "run"))


# -- nothing unverified ------------------------------------------------------------------------------------------------


def flip(workdir: pathlib.Path, step: int) -> None:
    """Bits all over the arrays' files."""
    state = workdir / "checkpoints" / str(step) / "state"
    for path in state.glob("ocdbt.process_0/d/*"):
        content = bytearray(path.read_bytes())
        for place in range(100, len(content), 101):
            content[place] ^= 16
        path.write_bytes(content)


def lose_manifest(workdir: pathlib.Path, step: int) -> None:
    shutil.rmtree(workdir / "checkpoints" / str(step) / "manifest")


USES = {
    "load": lambda workdir, step: ablax.load(workdir, step, say=lambda _: None),
    "evaluate": lambda workdir, step: ablax.evaluate(workdir, step=step),
    "fork": lambda workdir, step: ablax.fork(f"{workdir}@{step}", workdir.parent / "fork"),
    "init": lambda workdir, step: ablax.train(
        ablax.resolve(experiment(workdir.parent), {"init.run": f"{workdir}@{step}"}),
        workdir.parent / "child",
        progress=False,
    ),
}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("harm", [flip, lose_manifest])
def test_every_use_of_weights_verifies_them(copy: pathlib.Path, use: str, harm):
    """`train` goes back to the checkpoint before: tests/test_trainer.py; `generate` and `fill` are `load`."""
    harm(copy, 2)
    with pytest.raises(RequestError) as error:
        USES[use](copy, 2)
    assert "\n" not in str(error.value)
    if use == "fork":
        assert str(error.value).endswith(f"fork {copy}@1")
    assert not (copy.parent / "fork").exists()


def test_a_lost_manifest_can_be_done_without_by_who_asks(copy: pathlib.Path, capsys):
    lose_manifest(copy, 2)
    command = ["generate", f"--workdir={copy}", "--prompt=the", "--step=2", "--max_new_tokens=2"]
    assert cli.main(command) == cli.REFUSED
    capsys.readouterr()
    assert cli.main([*command, "--trust_unverified"]) == cli.DONE
    assert "NOT VERIFIED" in capsys.readouterr().err


def test_the_tokenizer_is_the_one_of_the_training(copy: pathlib.Path):
    """Catches: a tokenizer of the same size and other ids."""
    path = copy / "tokenizer" / "ablax_tokenizer.json"
    whole = json.loads(path.read_text())
    texts = whole["special_texts"]
    first, second, *_ = texts
    texts[first], texts[second] = texts[second], texts[first]
    path.write_text(json.dumps(whole))
    with pytest.raises(RequestError, match="not the tokenizer that the run was trained with"):
        ablax.load(copy)


def test_counts_are_verified_too(tmp_path: pathlib.Path):
    """Catches: the counts of another run, or without their hash, which a zip's own checksums allow."""
    ablax.train(experiment(tmp_path, model="ngram"), tmp_path / "run", progress=False)
    counts = tmp_path / "run" / "checkpoints" / "ngram.npz"
    ablax.load(tmp_path / "run")
    content = counts.read_bytes()
    counts.write_bytes(content + b" ")
    with pytest.raises(RequestError, match=r"ngram.npz is damaged"):
        ablax.load(tmp_path / "run")
    counts.write_bytes(content)
    (counts.parent / "ngram-manifest.json").unlink()
    with pytest.raises(RequestError, match="--trust_unverified"):
        ablax.load(tmp_path / "run")
    said: list[str] = []
    ablax.load(tmp_path / "run", trust_unverified=True, say=said.append)
    assert "NOT VERIFIED" in said[0]


# -- no code -----------------------------------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
UNSAFE_METHODS = {
    "load_module",
    "exec_module",
    "run_path",
    "run_module",
    "import_module",
    "read_pickle",
}
# Where code that the user named is run, or a module of a name that is written in Ablax is imported.
ALLOWED = {
    "__init__.py": "the lazy names of the package",
    "cli.py": "ablax.commands.NAME, from a table",
    "config/knobs.py": "module:Name that a configuration names; `imports=False` for one that was read from a run",
    "commands/flags.py": "--extend",
    "data/builtin.py": "pydoc_data.topics",
    "data/tfds_prepare.py": "parts of TFDS, from a list",
    "experiment.py": "the experiment file that --config names",
}


def unsafe(tree: ast.AST) -> list[str]:
    """What in a syntax tree could run code that was read."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] * (node.module.partition(".")[0] in UNSAFE_MODULES)
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in UNSAFE_CALLS | UNSAFE_METHODS:
            found.append(function.id)
        if isinstance(function, ast.Attribute):
            whole = ast.unparse(function)
            if function.attr in UNSAFE_METHODS or whole in (
                "torch.load",
                "np.lib.format.read_array",
            ):
                found.append(whole)
            if whole in ("np.load", "numpy.load") and "allow_pickle=False" not in ast.unparse(node):
                found.append(whole)
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                found.append("allow_pickle")
    return found


def test_nothing_that_is_read_can_run_code():
    """Every module of the package; what is allowed is needed, and says why."""
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if (names := unsafe(ast.parse(path.read_text())))
    }
    assert found.keys() == ALLOWED.keys(), found
    allowed = {name for names in found.values() for name in names}
    assert allowed == {"importlib.import_module", "module_spec.loader.exec_module"}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from yaml import load",
        "eval(text)",
        "exec(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "runpy.run_path(path)",
        "importlib.import_module(name)",
    ],
)
def test_the_walk_sees_what_is_unsafe(line: str):
    assert unsafe(ast.parse(line))


AUDITED = """
import os, sys
plain, module, planted = sys.argv[1:]
os.chdir(plain)
import ablax, ablax.model, ablax.folders, ablax.trainer
import jax, orbax.checkpoint  # what they import is theirs
seen, watching = [], True

def hook(event, arguments):
    if not watching:
        return
    if event == "exec":
        place = arguments[0].co_filename
    elif event == "compile":
        place = str(arguments[1])
    elif event == "import":
        place = str(arguments[1] or arguments[0])
        if arguments[0].partition(".")[0] in ("evil", "evil_code", "page"):
            seen.append((event, arguments[0]))
    elif event in ("pickle.find_class", "marshal.loads", "marshal.load"):
        frame = sys._getframe(1)
        if event.startswith("marshal") and frame.f_code.co_filename.startswith("<frozen importlib"):
            return  # an installed module's byte code
        place = None
        seen.append((event, frame.f_code.co_filename))
    else:
        return
    if place and any(folder in place for folder in (plain, module, planted)):
        seen.append((event, place))

def found():
    global watching
    watching = False
    files = [getattr(m, "__file__", None) or "" for m in sys.modules.values()]
    inside = [file for file in files if file.startswith((plain, module, planted))]
    said = [sorted(set(seen)), inside, os.path.exists(os.path.join(planted, "ran"))]
    seen.clear()
    watching = True
    return said

sys.addaudithook(hook)
said = {}
model = ablax.load(plain)
model.generate("the", max_new_tokens=2, seed=1)
ablax.evaluate(plain)
said["plain"] = found()
os.chdir(module)
for use in (
    lambda: ablax.load(module),
    lambda: ablax.evaluate(module),
    lambda: ablax.fork(module, module + "-fork"),
    lambda: ablax.train(ablax.base(), module, progress=False),
):
    try:
        use()
        said["accepted"] = True
    except ablax.RequestError as error:
        assert "code outside Ablax" in str(error), error
said["module"] = found()
import pickle
pickle.loads(pickle.dumps(os.path.join))
exec(compile("1", os.path.join(plain, "evil.py"), "exec"))
said["bad"] = found()
import json
print(json.dumps(said))
"""
EVIL = """
import dataclasses, pathlib
(pathlib.Path({planted!r}) / "ran").touch()

@dataclasses.dataclass(frozen=True)
class Model:
    CAUSAL = True
    def build(self, vocab_size, max_length):
        raise SystemExit("evil code ran")
"""


@pytest.fixture(scope="module")
def audited(run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a process saw that loads a run, then one whose configuration names somebody's module, then does what is
    forbidden: what ran, modules from where nothing may come from, and whether planted code ran.
    """
    place = tmp_path_factory.mktemp("audited")
    planted, folders = place / "planted", [place / "plain", place / "module"]
    planted.mkdir()
    for workdir in folders:
        shutil.copytree(run, workdir)
    config = json.loads((folders[1] / "config.json").read_text())
    config["model"] = {"kind": "evil:Model"}
    (folders[1] / "config.json").write_text(json.dumps(config))
    places = [folder / name for folder in folders for name in ("", "code", "checkpoints")]
    for folder in [*places, planted]:
        folder.mkdir(exist_ok=True)
        for name in ("evil", "page", "sitecustomize", "usercustomize", "orbax", "msgpack"):
            if folder != planted or name == "evil":
                (folder / f"{name}.py").write_text(EVIL.format(planted=str(planted)))
    path = [str(ROOT / "research"), str(planted)]  # `evil` could be imported
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-P", "-c", AUDITED, *map(str, [*folders, planted])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_loading_runs_no_code(audited: dict):
    """Python files planted in the run folder, which is the current folder, are neither imported nor run, and nothing
    is unpickled while a run is loaded, evaluated and continues a prompt.
    """
    assert audited["plain"] == [[], [], False]


def test_a_kind_that_names_a_module_is_refused(audited: dict):
    """A configuration that names an importable module of somebody: load, evaluate, fork and train refuse it unread."""
    assert audited["module"] == [[], [], False]
    assert "accepted" not in audited


def test_the_hook_sees_what_it_should(audited: dict):
    seen = dict(audited["bad"][0])
    assert "pickle.find_class" in seen
    assert seen["exec"].endswith("evil.py")


def test_a_model_over_devices_is_the_same_model(run):
    """What several devices do: tests/parallel/test_generation.py. Catches: parameters that are lost on the way,
    devices that are not there."""
    model = ablax.load(run)
    over = model.over(data=1)
    assert over.layout.mesh.size == 1
    options = {"max_new_tokens": 4, "temperature": 0}
    one, other = (m.generate("the ", **options)[0][0] for m in (model, over))
    assert one.tokens == other.tokens
    one, other = (m.score(["the last line"]) for m in (model, over))
    assert other.nats[0] == pytest.approx(one.nats[0], rel=1e-6)
    with pytest.raises(RequestError, match="tensor=2 but this machine has 1"):
        model.over(data=1, tensor=2)
    with pytest.raises(RequestError, match="engine=pmap trains and lays out nothing"):
        model.over(engine="pmap")
