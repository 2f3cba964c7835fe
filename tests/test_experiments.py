"""Every shipped experiment: a runnable page whose published sizes are traced and whose smallest size runs."""

import ast
import pathlib
import re

import jax
import pytest

import ablax
from ablax import costs, inspection
from ablax.experiment import read_experiment
from ablax.sweeps.cells import cells_of
from ablax.sweeps.plan import plan_of
from ablax.sweeps.solved import solved
from ablax.training.evaluators import metrics_of

ROOT = pathlib.Path(__file__).resolve().parent.parent / "experiments"
PAGES = sorted(path for path in ROOT.rglob("*.py"))
IDS = [str(path.relative_to(ROOT).with_suffix("")) for path in PAGES]
SIZES = [(path, size) for path in PAGES for size in read_experiment(str(path)).module.SIZES]
SIZE_IDS = [f"{path.stem}:{size}" for path, size in SIZES]
# Where V comes from the data: the words of WikiText-2, the characters of Shakespeare. An epoch is a thousand steps.
COUNTED = {"WordConfig": 33_278, "CharacterConfig": 65}
EPOCH = 1000.0

SMALL = {
    "training.steps": 2,
    "schedule.warmup": 1,
    "evaluation.documents": 2,
    "evaluation.every": 0,
    "evaluation.pseudo_documents": 1,
    "checkpoint.every": 0,
    "writers.tensorboard": False,
}


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_a_page_asks_a_question_and_gives_its_source_and_command(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert "?" in text
    assert re.search(r"\b(19|20)\d\d\b|nanoGPT", text), (
        "names the paper or the code that it follows"
    )
    command = f"--config=experiments/{path.relative_to(ROOT)}"
    assert re.search(r"^    ablax (train|sweep) " + re.escape(command), text, re.MULTILINE)
    assert "--workdir=" in text
    assert re.search(r"\d (s|seconds?|minutes?|hours?)\b", text), "says how long it takes"
    assert re.search(r"\d\.\d+ (nats|bits) per", text), "says what it should print"


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_a_page_imports_only_the_two_modules_made_for_it(path):
    """Catches: a page that reaches into the library, which a user's copy would have to follow."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Import)
        if isinstance(node, ast.ImportFrom):
            assert node.module in ("ablax.experiment", "ablax.sweeps.plan")


@pytest.mark.parametrize(("path", "size"), SIZES, ids=SIZE_IDS)
def test_every_size_is_resolved_and_traced(path, size):
    """Initial values, loss and sharding rules, abstractly: nothing is allocated.

    Catches: a size whose heads, durations, schedule or preset do not fit each other."""
    experiment = ablax.resolve(read_experiment(f"{path}:{size}").get_config())
    if hasattr(experiment.model, "fit"):
        return
    tokenizer = experiment.data.tokenizer
    vocabulary = COUNTED.get(type(tokenizer).__name__) or tokenizer.vocab_size
    program = inspection.program_of(experiment, vocabulary, EPOCH)
    state = inspection.session.abstract_state(program, experiment)
    loss = jax.eval_shape(lambda s, b: costs.loss_of(program, s.params, s, b), state, program.spec)
    assert (loss.shape, loss.dtype) == ((), "float32")
    total = inspection.parameters(state)["total"]
    assert total > 0
    if (path.stem, size) in PUBLISHED:
        # The papers count with or without positions and round; ours must be the model they name.
        assert total / PUBLISHED[path.stem, size] == pytest.approx(1, abs=0.03)


PUBLISHED = {
    ("decoder", "small"): 124e6,
    ("decoder", "medium"): 355e6,
    ("decoder", "large"): 774e6,
    ("decoder", "xl"): 1558e6,
    ("decoder", "6.7b"): 6.7e9,
    ("decoder", "13b"): 13e9,
    ("decoder", "175b"): 175e9,
    ("experts", "8x7b"): 46.7e9,
    ("encoder", "base"): 110e6,
    ("encoder", "large"): 335e6,
    ("shakespeare_char", "small"): 0.8e6,
}


TINY = [path for path in PAGES if not hasattr(read_experiment(str(path)).module, "get_sweep")]


@pytest.mark.parametrize("path", TINY, ids=[path.stem for path in TINY])
def test_the_tiny_size_runs(path, tmp_path):
    config = read_experiment(f"{path}:tiny").get_config()
    fields = ablax.resolve(config)
    overrides = {k: v for k, v in SMALL.items() if has(fields, k)}
    run = ablax.train(ablax.resolve(config, overrides), tmp_path / "run", progress=False)
    assert run.finished
    assert run.metrics["split"] == "validation"
    assert run.parameters > 0


def has(config, path):
    for name in path.split("."):
        if not hasattr(config, name):
            return False
        config = getattr(config, name)
    return True


PLANS = [path for path in PAGES if path not in TINY]


@pytest.mark.parametrize("path", PLANS, ids=[path.stem for path in PLANS])
def test_every_cell_of_a_plan_is_resolved(path):
    """Its cells are run by the quickstart and by the tests of the sweep."""
    page = read_experiment(f"{path}:tiny")
    plan = plan_of(page.get_sweep())
    overrides, _ = solved(page.get_config(), plan.cells)
    cells = cells_of(overrides)
    assert len({cell.arm for cell in cells}) > 1
    resolved = [ablax.resolve(page.get_config(), cell.overrides) for cell in cells]
    assert any(plan.metric in metrics_of(experiment) for experiment in resolved)
