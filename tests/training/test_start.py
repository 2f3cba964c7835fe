"""Starting from another run's parameters: those that were asked for, all of them, and nothing is drawn in silence."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import ablax
from ablax.config import RequestError
from ablax.experiment import base
from ablax.training.manifest import leaves_of
from ablax.training.saved import SavedCheckpoint
from ablax.training.start import InitConfig

BODY = "^(blocks|final_norm|positions)"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("start")
    lines = [f"the {number}th line says {'abc' * (number % 5)}" for number in range(60)]
    (folder / "text.txt").write_text("\n".join(lines))
    return folder


def experiment(place: pathlib.Path, tokenizer: str = "byte", **changes):
    config = base(tokenizer=tokenizer, schedule="constant", source=f"text:{place / 'text.txt'}")
    config.data.source.document, config.data.split.validation = "line", 0.2
    config.model.num_layers, config.model.width, config.model.num_heads = 1, 16, 2
    config.data.sequence_length, config.training.batch_size, config.training.steps = 16, 4, 1
    config.evaluation.documents, config.evaluation.every = 1, 0
    config.writers.tensorboard = False
    return ablax.resolve(config, {k.replace("__", "."): v for k, v in changes.items()})


def train(config, workdir: pathlib.Path) -> list[str]:
    said: list[str] = []
    ablax.train(config, workdir, progress=False, say=said.append)
    return said


@pytest.fixture(scope="module")
def parent(place: pathlib.Path) -> pathlib.Path:
    """A run of two steps that keeps averages, with a checkpoint of each."""
    config = experiment(
        place, training__steps=2, training__ema_decay=0.5, checkpoint__every=1, seed=7
    )
    train(config, place / "parent")
    return place / "parent"


def params_of(workdir: pathlib.Path, step: int, prefix: str) -> dict[str, np.ndarray]:
    saved = SavedCheckpoint(workdir / "checkpoints", step)
    found = saved.arrays(lambda path: path.startswith(prefix))
    return {path.removeprefix(prefix): leaf for path, leaf in found.items()}


def near(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for one step of a learning rate of 1e-9, which float32 mostly does not see."""
    return bool(np.allclose(a, b, rtol=0, atol=1e-8))


SMALL = {"optimizer__learning_rate": 1e-9, "training__ema_decay": 0.5}


@pytest.fixture(scope="module")
def child(place: pathlib.Path, parent: pathlib.Path) -> tuple[pathlib.Path, str]:
    """A run of one step that takes all parameters, and the first line that it said."""
    said = train(experiment(place, init__run=str(parent), **SMALL), place / "child")
    return place / "child", said[0]


def test_all_parameters_are_taken(parent: pathlib.Path, child: tuple[pathlib.Path, str]):
    """Catches: the raw parameters taken where the averaged ones are evaluated; an average or an optimizer that starts
    from the drawn ones; a parent that is not recorded."""
    workdir, line = child
    there = params_of(parent, 2, "ema/")
    for prefix in ("params/", "ema/"):
        found = params_of(workdir, 1, prefix)
        assert found.keys() == there.keys()
        assert all(near(found[name], there[name]) for name in there)
    raw = params_of(parent, 2, "params/")
    assert not near(raw["tokens/embedding"], there["tokens/embedding"])
    assert f"{len(there)} parameters are taken" in line
    assert "none is drawn" in line
    origin = json.loads((workdir / "run.json").read_text())["parent"]
    assert (origin["workdir"], origin["step"], origin["drawn"]) == (str(parent), 2, [])


def test_another_vocabulary_takes_the_body(place: pathlib.Path, parent: pathlib.Path):
    """The whole flow: letters instead of bytes, so the embedding, which is the head too, is drawn anew and named."""
    wanted = {"init__run": f"{parent}@1", "optimizer__learning_rate": 1e-9}
    with pytest.raises(
        RequestError, match=r"tokens/embedding is float32\[\d+, 16\] in the checkpo"
    ) as error:
        train(experiment(place, "character", **wanted), place / "letters")
    assert "let init.match leave them out" in str(error.value)
    assert not (place / "letters").exists()
    config = experiment(place, "character", init__match=BODY, **wanted)
    (line, *_) = train(config, place / "letters")
    assert "1 are freshly drawn: tokens/embedding" in line
    there = params_of(parent, 1, "ema/")
    found = params_of(place / "letters", 1, "params/")
    assert all(near(found[name], there[name]) for name in there if name != "tokens/embedding")
    assert found["tokens/embedding"].shape != there["tokens/embedding"].shape
    assert found["tokens/embedding"].std() > 0
    origin = json.loads((place / "letters" / "run.json").read_text())["parent"]
    assert (origin["step"], origin["drawn"]) == (1, ["tokens/embedding"])


def test_a_run_goes_on_without_its_parent(
    place: pathlib.Path, parent: pathlib.Path, child: tuple[pathlib.Path, str]
):
    """Catches: a resume that asks for the parent again, or takes its parameters a second time."""
    workdir = pathlib.Path(shutil.copytree(child[0], place / "goes_on"))
    parent.rename(place / "gone")
    try:
        said = train(experiment(place, init__run=str(parent), training__steps=2, **SMALL), workdir)
    finally:
        (place / "gone").rename(parent)
    assert said[0] == "resuming at step 1"
    assert json.loads((workdir / "run.json").read_text())["parent"]["workdir"] == str(parent)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init__match": "^nothing"}, "finds no parameter of this model; there are: blocks/"),
        ({"model__width": 32}, r"float32\[\d+, 16\] in the checkpoint and float32\[\d+, 32\] here"),
        ({"model__num_layers": 2}, r"float32\[1, 16\] in the checkpoint and float32\[2, 16\] here"),
        ({"model__tied_embeddings": False}, "head/kernel is nothing in the checkpoint"),
        ({"init__run": "PARENT@9"}, r"no such checkpoint; kept steps are \[1, 2\]"),
        ({"init__run": "nowhere"}, "holds no run"),
        ({"data__tokenizer": "character", "init__match": "tokens"}, "tokens/embedding"),
        ({"model": "ngram"}, "a fitted model starts from counts alone"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    place: pathlib.Path, parent: pathlib.Path, changes: dict, words: str
):
    changes = {"init__run": str(parent), **changes}
    changes["init__run"] = changes["init__run"].replace("PARENT", str(parent))
    with pytest.raises(RequestError, match=words) as error:
        train(experiment(place, **changes), place / "refused")
    assert "\n" not in str(error.value)
    assert not (place / "refused").exists()


def test_equal_sizes_of_another_tokenizer_are_refused(place: pathlib.Path, parent: pathlib.Path):
    """Catches: rows of an embedding used for other ids because their number happens to be the same."""
    from ablax.training.start import Donor

    shapes = {"tokens": {"embedding": params_of(parent, 2, "params/")["tokens/embedding"]}}

    class Other:
        fingerprint = "another"

    config = InitConfig(run=str(parent), match="^tokens")
    with pytest.raises(RequestError, match="another tokenizer than this run, and tokens/embedding"):
        Donor.of(config, shapes, Other(), pytest.fail)  # type: ignore[arg-type]
    assert leaves_of(shapes).keys() == {"tokens/embedding"}


def test_mistakes_in_the_pattern():
    with pytest.raises(RequestError, match="is not a regular expression"):
        InitConfig(run="x", match="(")
    with pytest.raises(RequestError, match="needs a run"):
        InitConfig(match="blocks")
