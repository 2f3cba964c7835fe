"""The shape of the code: sizes of files and functions, what imports what, where knobs get their values."""

import ast
import configparser
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "research" / "ablax"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)
TREES = {path: ast.parse(path.read_text()) for path in FILES}
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]

LONGEST_FILE, LONGEST_FUNCTION, LONGEST_LOOP = 300, 100, 60
# The path from a configuration to a trained model, readable in one sitting.
SITTING = (
    "config/*.py",
    "data/loader.py",
    "models/transformer.py",
    "training/step.py",
    "training/loop.py",
)


def lines_of(path):
    return len(path.read_text().splitlines())


def functions_of(tree):
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length_of(function):
    return function.end_lineno - function.lineno + 1


def modules_of(tree):
    """Everything a file imports, at the top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_is_short_and_says_what_it_is(path):
    assert lines_of(path) <= LONGEST_FILE
    assert ast.get_docstring(TREES[path]), "a module says in its docstring what it holds"
    long = {f.name: length_of(f) for f in functions_of(TREES[path])}
    assert {name: n for name, n in long.items() if n > LONGEST_FUNCTION} == {}
    assert "utils" not in path.stem


def test_the_training_loop_fits_a_screen():
    (loop,) = [f for f in functions_of(TREES[PACKAGE / "training/loop.py"]) if f.name == "run"]
    assert length_of(loop) < LONGEST_LOOP


def test_the_core_is_readable_in_one_sitting():
    """Lists of re-exports apart."""
    files = [path for pattern in SITTING for path in PACKAGE.glob(pattern)]
    assert sum(lines_of(path) for path in files if path.name != "__init__.py") < 1500


def test_a_package_says_what_it_is_in_one_sentence():
    for path in FILES:
        if path.name == "__init__.py":
            first = ast.get_docstring(TREES[path]).split("\n\n")[0]
            assert first.endswith("."), path


CONFIGURED = ("config", "cfg", "experiment", "knobs", "settings", "training", "hyper", "model")


def name_of(node):
    """The last part of `a.b.c`."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def declared_knobs():
    """Names of the fields that are declared by `knob` or `family`."""
    for tree in TREES.values():
        for node in ast.walk(tree):
            declared = isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call)
            if declared and name_of(node.value.func) in ("knob", "family"):
                yield name_of(node.target)


KNOBS = set(declared_knobs())


def second_defaults(tree):
    """Lines with a default beside the declared one. None in `getattr` asks whether a kind has the knob at all, and an
    empty dict stands for a group without traced knobs: neither is a default."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        subject, default = name_of(getattr(node.func, "value", None)), node.args[-1]
        if name_of(node.func) == "get" and len(node.args) == 2 and subject in CONFIGURED:
            empty = isinstance(default, ast.Dict) and not default.keys
            if (empty, subject) != (True, "hyper"):
                yield node.lineno
        if name_of(node.func) == "getattr" and len(node.args) == 3:
            asked, none = node.args[1], isinstance(default, ast.Constant) and default.value is None
            computed = not isinstance(asked, ast.Constant)
            knob = name_of(node.args[0]) in CONFIGURED if computed else asked.value in KNOBS
            if knob and not none:
                yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_knob_has_a_second_default(path):
    """`config.get(key, default)` and `getattr(config, name, default)` for a declared knob: two defaults, one of them
    unseen."""
    assert list(second_defaults(TREES[path])) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("config.get('width', 8)", True),
        ("run.training.get('steps', 10)", True),
        ("getattr(experiment.model, 'width', 8)", True),
        ("getattr(config, name, 0)", True),
        ("getattr(experiment.model, 'num_heads', None)", False),
        ("getattr(experiment.model, 'RECURRENT', False)", False),
        ("hyper.get('model', {})", False),
        ("status.get('data', 0)", False),
    ],
)
def test_a_second_default_is_seen(code, found):
    assert bool(list(second_defaults(ast.parse(code)))) == found


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_heavy_library_is_imported(path):
    """Inside functions too, which import-linter would see and a run would not."""
    heads = {module.partition(".")[0] for module in modules_of(TREES[path])}
    assert heads & {"tensorflow", "torch", "transformers", "keras"} == set()


def test_every_folder_is_a_listed_package():
    """Catches: a new folder that an installed wheel would lack."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    folders = {
        ".".join(path.parent.relative_to(ROOT / "research").parts)
        for path in PACKAGE.rglob("__init__.py")
    }
    shipped = {"ablax.experiments"} | {
        "ablax." + ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "experiments").rglob("*.py")
    }
    assert listed == folders | shipped
    for path in FILES:
        package = path.parent / "__init__.py"
        assert package.exists() or "templates" in path.parts, f"{path} is in no package"


def test_every_file_that_is_shipped_beside_code_exists():
    """Catches: `py.typed` declared and absent, so that a user's type checker sees no type of ours."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["*"].split(",")
    assert [p for p in patterns if not list(PACKAGE.glob(p.strip()))] == []


def test_the_package_is_lazy():
    """`import ablax` loads nothing, and everything it names is there."""
    code = (
        "import sys, ablax; heavy = {'jax', 'numpy', 'flax', 'ml_collections'} & set(sys.modules)\n"
        "print(sorted(heavy), sorted(m for m in sys.modules if m.startswith('ablax.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "research")},
    )
    assert done.stdout.strip() == "[] []", done.stderr
    import ablax

    assert sorted(ablax.__all__) == sorted(ablax._PLACES)
    assert all(getattr(ablax, name) for name in ablax.__all__)
    with pytest.raises(AttributeError, match="there are: RequestError, base"):
        ablax.no_such_name  # noqa: B018


def test_tests_mirror_the_package():
    """Catches: a test file of a module that was renamed or is gone."""
    stems = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    own = {"test_" + stem for stem in stems}
    for path in (ROOT / "tests").rglob("test_*.py"):
        relative = path.relative_to(ROOT / "tests")
        if len(relative.parts) == 1 or relative.parts[0] in ("laws", "parallel"):
            continue
        assert (PACKAGE / relative.parent).is_dir(), path
        assert (
            path.stem in own
            or path.stem.removesuffix("_oracles") in own
            or (relative.parts[0] == "commands")
        ), path
