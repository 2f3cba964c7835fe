"""A finished run that keeps its parameters only: they are the same, verified, and nothing else is promised."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import ablax
from ablax.config import RequestError
from ablax.experiment import base
from ablax.run import RunFolder
from ablax.training import disk, thinning
from ablax.training.checkpoints import Checkpoints
from ablax.training.saved import SavedCheckpoint
from ablax.training.thinned import unthinned


def experiment(place: pathlib.Path, **changes):
    text = place / "text.txt"
    text.write_text("\n".join(f"the {n}th line says {'abc' * (n % 5)}" for n in range(60)))
    config = base(tokenizer="byte", schedule="constant", source=f"text:{text}")
    config.data.source.document, config.data.split.validation = "line", 0.2
    config.model.num_layers, config.model.width, config.model.num_heads = 1, 16, 2
    config.data.sequence_length, config.training.batch_size, config.training.steps = 16, 4, 3
    config.training.ema_decay = 0.5
    config.evaluation.documents, config.evaluation.every, config.checkpoint.every = 1, 1, 1
    config.writers.tensorboard = False
    return ablax.resolve(config, {k.replace("__", "."): v for k, v in changes.items()})


def train(config, workdir: pathlib.Path) -> list[str]:
    said: list[str] = []
    ablax.train(config, workdir, progress=False, say=said.append)
    return said


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("thinned")


@pytest.fixture(scope="module")
def whole(place: pathlib.Path) -> pathlib.Path:
    """A finished run with whole states of steps 2 and 3, maybe 1; nobody may write in it."""
    train(experiment(place), place / "whole")
    return place / "whole"


@pytest.fixture(scope="module")
def thinned(place: pathlib.Path, whole: pathlib.Path) -> pathlib.Path:
    """The same run, thinned when it was called again."""
    workdir = pathlib.Path(shutil.copytree(whole, place / "thin"))
    train(experiment(place, checkpoint__at_end="parameters"), workdir)
    return workdir


def paths_of(workdir: pathlib.Path) -> dict[int, set[str]]:
    with Checkpoints(workdir / "checkpoints", writer=False) as checkpoints:
        return {s: set(checkpoints.saved(s).arrays()) for s in checkpoints.all_steps()}


def size_of(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_evaluated_parameters_are_left_and_nothing_else(
    whole: pathlib.Path, thinned: pathlib.Path
):
    """Catches: the raw parameters kept where averaged ones are evaluated; an optimizer's state that stays; scores that
    are lost, so that another checkpoint is the best."""
    before, after = paths_of(whole), paths_of(thinned)
    assert before.keys() == after.keys()
    assert all(path.startswith("evaluated/") for paths in after.values() for path in paths)
    for step in ("best", "last"):
        one, two = ablax.load(whole, step), ablax.load(thinned, step)
        assert one.step == two.step
        texts = ["the 7th line"]
        assert np.array_equal(one.score(texts).nats, two.score(texts).nats)
    assert size_of(thinned / "checkpoints") < 0.6 * size_of(whole / "checkpoints")
    assert not unthinned(RunFolder(thinned))


def test_a_run_thins_itself_when_it_has_finished(place: pathlib.Path, whole: pathlib.Path):
    """The real flow: train, evaluate, generate. Catches: thinning that only a second call does."""
    workdir = place / "itself"
    train(experiment(place, checkpoint__at_end="parameters"), workdir)
    assert not unthinned(RunFolder(workdir))
    again = ablax.evaluate(workdir, step="last")
    assert again["nats_per_token"] == ablax.evaluate(whole, step="last")["nats_per_token"]
    assert ablax.load(workdir).generate("the ", max_new_tokens=2)


def test_a_cell_of_a_sweep_keeps_its_parameters_unless_it_is_told_otherwise(
    place: pathlib.Path, whole: pathlib.Path
):
    """Catches: a sweep whose disk is full of optimizer states that nobody will use."""
    folder = RunFolder(shutil.copytree(whole, place / "cell"))
    alone, told = experiment(place), experiment(place, checkpoint__at_end="state")
    assert not thinning.is_due(alone, folder)
    folder.update(sweep={"cell": {}})
    assert thinning.is_due(alone, folder)
    assert not thinning.is_due(told, folder)


def test_what_needs_a_state_is_refused_in_one_line(place: pathlib.Path, thinned: pathlib.Path):
    """Catches: a longer run that starts over from drawn parameters, or with a fresh optimizer, and does not say so."""
    longer = experiment(place, checkpoint__at_end="parameters", training__steps=5)
    before = (thinned / "run.json").read_text()
    with pytest.raises(RequestError, match=r"kept only its parameters.*init\.run=") as refused:
        train(longer, thinned)
    assert "\n" not in str(refused.value)
    assert (thinned / "run.json").read_text() == before
    with pytest.raises(RequestError, match=r"parameters"):
        ablax.fork(thinned, place / "child")
    assert not (place / "child").exists()


def test_a_new_run_takes_them(place: pathlib.Path, thinned: pathlib.Path):
    """What the refusal advises."""
    config = experiment(place, init__run=str(thinned), training__steps=1)
    assert "parameters are taken" in train(config, place / "taker")[0]


def test_damage_is_found(place: pathlib.Path, thinned: pathlib.Path):
    """Catches: a manifest that is not made anew, or that nobody asks."""
    copy = pathlib.Path(shutil.copytree(thinned, place / "damaged"))
    for name in ("3",):
        file = copy / "checkpoints" / name / "manifest" / "metadata"
        content = json.loads(file.read_text())
        path = next(iter(content["leaves"]))
        content["leaves"][path][2] = "0" * 64
        file.write_text(json.dumps(content))
    with pytest.raises(RequestError, match="no checkpoint of"):
        ablax.load(copy, 3)


@pytest.mark.parametrize("when", ["written", "set aside"])
def test_a_kill_in_the_middle_loses_nothing(
    place: pathlib.Path, whole: pathlib.Path, monkeypatch: pytest.MonkeyPatch, when: str
):
    """Catches: a state that is deleted before what is left of it has its name."""
    workdir = pathlib.Path(shutil.copytree(whole, place / f"killed {when}"))
    aside = disk.set_aside

    def dying(path: pathlib.Path) -> None:
        if when == "written":
            raise KeyboardInterrupt
        aside(path)
        patch.setattr(pathlib.Path, "rename", dying_at_rename)

    def dying_at_rename(*_: object) -> None:
        raise KeyboardInterrupt

    config = experiment(place, checkpoint__at_end="parameters")
    with monkeypatch.context() as patch:
        patch.setattr(thinning.disk, "set_aside", dying)
        patch.setattr(Checkpoints, "_clean", lambda self: None)  # a kill leaves no time for it
        with pytest.raises(KeyboardInterrupt):
            train(config, workdir)
    train(config, workdir)
    assert paths_of(workdir).keys() == paths_of(whole).keys()
    assert not unthinned(RunFolder(workdir))
    assert isinstance(SavedCheckpoint(workdir / "checkpoints", 3).scores(), dict)
