"""A run on a disk that fails goes on, says so, and is a success only if its last state is durable."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

import ablax
from ablax import cli
from ablax.experiment import base
from ablax.run import RunFolder
from ablax.training.checkpoints import Checkpoints, SaveError
from ablax.training.disk import failed_save
from ablax.training.phases import Phases
from ablax.training.saving import Saving
from checkpoint_states import make_state, same

CURSOR = {"seconds": 1.0}


class Disk(Checkpoints):
    """Checkpoints that fail for chosen steps, at once or from the background."""

    at_once: frozenset[int] = frozenset()
    later: frozenset[int] = frozenset()

    def _broken(self, step: int) -> SaveError:
        error = OSError(errno.EIO, os.strerror(errno.EIO))
        return failed_save(self.folder, step, error, 1, self.latest_step())

    def save(self, step, *arguments):
        self.due = step in self.later
        if step in self.at_once:
            raise self._broken(step)
        if not self.due:
            super().save(step, *arguments)

    def wait(self):
        super().wait()
        if getattr(self, "due", False):
            self.due = False
            raise self._broken(-1)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("when", ["at_once", "later"])
def test_a_failed_save_is_said_recorded_and_tried_again(folder: RunFolder, when: str):
    """Fails if it ends the run, is silent, or run.json names a step that is not durable."""
    said: list[str] = []
    with Disk(folder.checkpoints, keep=3) as disk:
        setattr(disk, when, {2})
        saving = Saving(disk, folder, said.append)
        saving.save(1, make_state(1), CURSOR, {}, {}, False)
        saving.save(2, make_state(2), CURSOR, {}, {}, False)
        saving.save(3, make_state(3), CURSOR, {}, {}, False)
        (failure,) = folder.status()["failed_saves"]
        assert failure["step"] == 2
        assert "Input/output error" in failure["error"]
        (line,) = said
        assert "training goes on, and the next save tries again" in line
        assert saving.last_good() == 3
        saving.finish()
        assert folder.status()["step"] == disk.latest_step() == 3
        assert len(said) == 1


@pytest.mark.parametrize("when", ["at_once", "later"])
def test_before_the_last_save_and_without_one_nothing_goes_on(folder: RunFolder, when: str):
    """Catches: `training goes on` of a run that ends with the next save, or has diverged."""
    said: list[str] = []
    with Disk(folder.checkpoints) as disk:
        setattr(disk, when, {2, 3})
        saving = Saving(disk, folder, said.append)
        saving.save(1, make_state(1), CURSOR, {}, {}, False)
        saving.save(2, make_state(2), CURSOR, {}, {}, False)
        assert saving.last_good() == folder.status()["step"] == 1
        assert [line.endswith("checkpoint 1 is still good") for line in said] == [when == "later"]
        saving.save(3, make_state(3), CURSOR, {}, {}, False)
        saving.save(4, make_state(4), CURSOR, {}, {}, True)
        if when == "later":
            assert said[1].endswith("checkpoint 1 is still good; the last save tries again")
        saving.finish()
        assert len(said) == 2


@pytest.mark.parametrize("when", ["at_once", "later"])
def test_the_last_save_must_be_durable(folder: RunFolder, when: str):
    """Fails if a run whose last state was lost counts as finished."""
    with Disk(folder.checkpoints) as disk:
        setattr(disk, when, {3})
        saving = Saving(disk, folder, pytest.fail)
        saving.save(2, make_state(2), CURSOR, {}, {}, False)
        saving.save(3, make_state(3), CURSOR, {}, {}, True)
        for _ in range(2):  # asked again, it is still not
            with pytest.raises(SaveError, match="checkpoint 2 is still good; the run ends without"):
                saving.finish()


def experiment(tmp_path: pathlib.Path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the {n}th line says {'abc' * (n % 5)}" for n in range(60)))
    config = base(tokenizer="byte", schedule="constant", source=f"text:{text}")
    config.data.source.document, config.data.split.validation = "line", 0.2
    config.model.num_layers, config.model.width, config.model.num_heads = 1, 64, 2
    config.data.sequence_length, config.training.batch_size, config.training.steps = 16, 4, 6
    config.evaluation.documents, config.evaluation.every, config.checkpoint.every = 1, 2, 2
    config.writers.every, config.writers.tensorboard = 1, False
    return config


@pytest.mark.parametrize("freed", [True, False])
def test_a_run_on_a_disk_that_fills_up(
    small_disk: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    freed: bool,
):
    """Really full, to the last byte, from the second save to the third, or for ever: evaluations, records and run.json
    cannot be written either. Catches: a run that dies of a full disk and would have had room again; a run that
    seems finished without its last state; a last good checkpoint that was hurt.
    """
    workdir, filler = small_disk / "run", small_disk / "filler"
    save, seen = Checkpoints.save, {}

    def fill_up(self, step, state, *rest):
        if step == 2:
            seen["state"] = jax.tree.map(lambda x: np.array(x, copy=True), state)  # before donation
        if step == 4:
            self.wait()
            with filler.open("wb", buffering=0) as file:
                for size in (1 << 16, 1 << 10, 1):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(size))
            assert shutil.disk_usage(small_disk).free == 0
        if step == 6 and freed:
            filler.unlink()
        save(self, step, state, *rest)

    monkeypatch.setattr(Checkpoints, "save", fill_up)
    said: list[str] = []
    config = experiment(tmp_path)
    if freed:
        assert ablax.train(config, workdir, progress=False, say=said.append).finished
        assert json.loads((workdir / "run.json").read_text())["step"] == 6
        assert sorted(os.listdir(workdir / "checkpoints")) == ["2", "6"]
    else:
        with pytest.raises(SaveError, match=r"disk is full.*checkpoint 2 is still good") as error:
            ablax.train(config, workdir, progress=False, say=said.append)
        assert cli.failure(error.value) == cli.FAILED
        filler.unlink()
        with Checkpoints(workdir / "checkpoints", writer=False) as checkpoints:
            assert same(checkpoints.restore(seen["state"])[0], seen["state"])
        monkeypatch.setattr(Checkpoints, "save", save)
        assert ablax.train(config, workdir, progress=False, say=said.append).finished
    assert any("checkpoint 4 was not saved" in line for line in said)


def test_a_run_that_is_stopped_and_cannot_save(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """Catches: an end that counts as saved, and the promise of a next save that nothing will make."""
    save, enter = Checkpoints.save, Phases.enter

    def entering(self, name, step):
        enter(self, name, step)
        if (name, step) == ("step", 3):
            os.kill(os.getpid(), signal.SIGTERM)

    def failing(self, step, *rest):
        if step == 3:
            error = OSError(errno.EIO, os.strerror(errno.EIO))
            raise failed_save(self.folder, step, error, 1, self.latest_step())
        save(self, step, *rest)

    monkeypatch.setattr(Phases, "enter", entering)
    monkeypatch.setattr(Checkpoints, "save", failing)
    said: list[str] = []
    with pytest.raises(SaveError, match=r"checkpoint 3 .* 2 is still good; the run ends") as error:
        ablax.train(experiment(tmp_path), tmp_path / "run", progress=False, say=said.append)
    assert cli.failure(error.value) == cli.FAILED
    assert not [line for line in said if "not saved" in line]
    status = RunFolder(tmp_path / "run").status()
    assert (status["step"], status["failed_saves"][0]["step"]) == (2, 3)


def test_a_run_that_cannot_save_is_not_started(small_disk: pathlib.Path, tmp_path: pathlib.Path):
    """Catches: hours of training before the first save says that the disk is too small."""
    (small_disk / "filler").write_bytes(bytes(3 << 20))
    with pytest.raises(ablax.RequestError, match="a checkpoint of this run takes"):
        ablax.train(experiment(tmp_path), small_disk / "run", progress=False)
    assert os.listdir(small_disk) == ["filler"]
