"""Wrong requests: one line on stderr that says what, where and how to fix it, exit code 2, and nothing half-written."""

import fcntl
import itertools
import json
import os
import pathlib
import shutil

import pytest

from ablax import cli
from ablax.config import RequestError
from ablax.model import load
from ablax.training.checkpoints import Checkpoints, SaveError

PAGE = '''"""A page for the tests."""

from ablax.experiment import base


def get_config(family="decoder"):
    kinds = {"encoder": {"model": "encoder", "objective": "masked"}, "ngram": {"model": "ngram"}}
    kinds = kinds[family] if family in kinds else {}
    config = base(tokenizer="byte", schedule="constant", source="text:" + GLOB, **kinds)
    config.data.source.document = "line"
    config.data.split.validation = 0.2
    config.data.sequence_length = 16
    if family != "ngram":
        config.model.num_layers = 1
        config.model.width = 16
        config.model.num_heads = 2
        config.model.positions = "learned"
    config.training.steps = 2
    config.training.batch_size = 4
    config.evaluation.documents = 2
    config.evaluation.every = 0
    config.evaluation.pseudo_documents = 0
    config.checkpoint.every = 1
    config.writers.tensorboard = False
    return config
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page, good text and bad text."""
    folder = tmp_path_factory.mktemp("bad")
    lines = [f"the {number}th line says {'abc' * (number % 5)}" for number in range(60)]
    (folder / "text.txt").write_text("\n".join(lines))
    (folder / "page.py").write_text(PAGE.replace("GLOB", repr(str(folder / "text.txt"))))
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(b"text\0more")
    (folder / "latin.txt").write_bytes(("\n".join(lines) + "\n").encode() + b"caf\xe9\n")
    (folder / "held.txt").write_text(lines[3])
    (folder / "elsewhere").mkdir()
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    """Finished runs, by family; nobody may write in them."""
    for family in ("decoder", "encoder"):
        arguments = [f"--config={folder / 'page.py'}:{family}", f"--workdir={folder / family}"]
        assert cli.main(["train", *arguments, "--platform=cpu"]) == 0
    return folder


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of the decoder's run to write in."""
    return pathlib.Path(shutil.copytree(runs / "decoder", tmp_path / "copy"))


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused and returns its one line; progress may stand above it."""

    def run(*arguments, code=cli.REFUSED):
        found = cli.main([*map(str, arguments), "--platform=cpu"])
        captured = capsys.readouterr()
        assert found == code, captured.err
        assert captured.out == ""
        assert "Traceback" not in captured.err
        *above, line = captured.err.strip().splitlines()
        assert all(said.startswith("tokenising ") for said in above), captured.err
        assert line.startswith("ablax: ")
        return line

    return run


def files(folder):
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.name != "lock"
    }


CONFIGURATIONS = {
    "unknown knob": (
        ["model.widht=8"],
        "unknown knob 'model.widht' (kind 'decoder'); did you mean 'width'?",
    ),
    "knob of another kind": (["model.order=3"], "unknown knob 'model.order' (kind 'decoder')"),
    "unknown kind": (["model=decodre"], "unknown kind 'decodre'; did you mean 'decoder'?"),
    "unknown preset": (["model=decoder:huge"], "has no preset 'huge'"),
    "wrong type": (["model.width=wide"], "model.width"),
    "wrong choice": (["data.layout=rows"], "data.layout"),
    "endless": (["seed=1e999"], "seed='1e999' must be a whole number"),
    "no number": (
        ["optimizer.learning_rate=nan"],
        "optimizer.learning_rate='nan' must be a finite number",
    ),
    "endless duration": (["training.steps=1e999 tokens"], "too long"),
    "class of no module": (["model=:Mine"], "names no module"),
    "no duration": (["training.steps=soon"], "'soon' is not a duration"),
    "heads that do not divide": (["model.num_heads=3"], "num_heads"),
    "batch and micro-batches": (
        ["training.accumulation=3"],
        "training.batch_size=4 does not divide",
    ),
    "more devices than there are": (
        ["parallel.data=4096"],
        "parallel.data=4096 but this machine has",
    ),
    "masked objective, decoder": (["objective=masked"], "set objective.kind=causal"),
    "streams, decoder": (["data.layout=streams"], "data.layout=streams needs a recurrent model"),
    "probes of counts": (
        ["model=ngram", "evaluation.probe_documents=4"],
        "evaluation.probe_documents=4: a NgramConfig has no states",
    ),
    "probes of words": (
        ["evaluation.probe_documents=4", "data.tokenizer=word"],
        "only a lossless tokenizer tells",
    ),
    "no brackets to choose": (
        ["evaluation.choices=6", "data.tokenizer=word"],
        "evaluation.choices asks for closing brackets",
    ),
    "context beyond positions": (["evaluation.context=64"], "evaluation.context to at most 16"),
    "missing corpus": (["data.source=text:{folder}/none*.txt"], "no file matches"),
    "empty corpus": (["data.source=text:{folder}/empty.txt"], "no documents in 1 files"),
    "binary file": (
        ["data.source=text:{folder}/binary.txt"],
        "binary.txt: binary file (NUL at byte 4)",
    ),
    "invalid UTF-8": (["data.source=text:{folder}/latin.txt"], "latin.txt: invalid UTF-8 at byte"),
    "unknown dataset": (["data.source=tfds:no_such_dataset_at_all"], "no_such_dataset_at_all"),
    "dataset elsewhere": (
        ["data.source=tfds:../../etc"],
        "'../../etc' is no name of a dataset; write NAME",
    ),
    "vocabulary smaller than the alphabet": (
        ["data.tokenizer=unigram", "data.tokenizer.vocab_size=20"],
        "tokenizer.vocab_size=20 has no room for the text's",
    ),
    "dataset not prepared": (
        ["data.source=tfds:wiki40b/en", "offline"],
        "wiki40b/en is not prepared under",
    ),
    "shared documents": (
        [
            "data.split.rule=given",
            "data.source.validation_glob={folder}/held.txt",
        ],
        "1 documents of train are also in validation",
    ),
    "empty split": (["data.split.validation=0"], "validation split is empty"),
    "unknown split": (["evaluation.split=held_out"], "there is no split 'held_out'"),
    "split that was not made": (["evaluation.split=test"], "there is no split 'test'"),
    "corpus shorter than a batch": (
        ["data.source=text:{folder}/held.txt", "data.split.rule=tail", "training.batch_size=64"],
        "lower training.batch_size or data.sequence_length",
    ),
    "no mask token": (
        ["model=encoder", "objective=masked", "data.tokenizer=file:{folder}/none.json"],
        "none.json",
    ),
    "no metric for the best": (["checkpoint.best=nats"], "checkpoint.best=nats is no metric"),
    "accuracy for the best": (["checkpoint.best=token_accuracy"], "whose smallest value"),
    "schedule longer than the run": (["schedule.warmup=50"], "warmup"),
}


@pytest.mark.parametrize("case", list(CONFIGURATIONS))
def test_wrong_configurations(folder, refused, tmp_path, case):
    """Catches: a default taken instead, a traceback, a run folder that is left behind."""
    changes, words = CONFIGURATIONS[case]
    flags = [f"--config.{c.format(folder=folder)}" for c in changes if c != "offline"]
    flags += ["--offline"] if "offline" in changes else []
    workdir = tmp_path / "run"
    said = refused("train", f"--config={folder / 'page.py'}", f"--workdir={workdir}", *flags)
    assert words in said
    assert not workdir.exists()


@pytest.mark.parametrize("change", ["seed=-1", "seed=4294967296", "data.split.seed=-1"])
def test_a_seed_is_refused_before_the_text_is_prepared(folder, capsys, change):
    """Catches: a corpus that is tokenised for a run that cannot start; a seed that wraps around to another one."""
    page = f"--config={folder / 'page.py'}"
    assert cli.main(["prepare", page, f"--config.{change}"]) == cli.REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{change.rpartition('.')[2]} must be a whole number in [0, 2**32)" in line


def test_pages_and_folders_that_are_not_there(folder, refused, tmp_path):
    """Catches: a traceback, or the default size, for a size that the page does not have."""
    (folder / "plain.py").write_text("def get_config():\n    return None\n")
    for page, words in (
        ("ablax:quickstart:tny", "has no size 'tny'; did you mean 'tiny'?"),
        ("ablax:pretrain/decoder:huge", "has no size 'huge'; there are: "),
        (f"{folder / 'plain.py'}:tiny", "takes no argument; remove :tiny"),
    ):
        said = refused("train", f"--config={page}", f"--workdir={tmp_path / 'run'}")
        assert words in said
    occupied = f"--workdir={folder / 'text.txt'}"
    said = refused("train", f"--config={folder / 'page.py'}", occupied)
    assert "text.txt cannot be made (File exists)" in said


def test_invalid_text_is_skipped_and_counted_on_request(folder, capsys):
    arguments = ["--config.data.source.on_error=skip"]
    source = f"--config.data.source.glob={folder / 'latin.txt'}"
    assert cli.main(["prepare", f"--config={folder / 'page.py'}", source, *arguments]) == 0
    splits = json.loads(capsys.readouterr().out)["splits"]
    assert splits["train"]["skipped"] == 1
    assert splits["train"]["documents"] + splits["validation"]["documents"] == 60


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ["generate", "decoder", "--prompt=" + "word " * 9],
            "that leaves no room in the model's 16",
        ),
        (["generate", "decoder", "--prompt=the", "--max_new_tokens=14"], "lower max_new_tokens"),
        (["generate", "encoder", "--prompt=the"], "a EncoderConfig cannot generate; it can fill"),
        (["generate", "decoder", "--prompt=the", "--temperature=-1"], "temperature"),
        (["generate", "decoder", "--prompt=the", "--num_beams=2", "--top_p=0.5"], "leave it out"),
        (["fill", "encoder", "--text=the [MASK]", "--top_k=0"], "top_k=0 must be in"),
        (["fill", "decoder", "--text=the [MASK]"], "a DecoderConfig cannot fill masks"),
        (["fill", "encoder", "--text=nothing hidden"], "[MASK]"),
        (
            ["evaluate", "decoder", "--split=test"],
            "there is no split 'test'; there are: train, validation",
        ),
        (["evaluate", "decoder", "--step=9"], "no checkpoint of step 9"),
        (["evaluate", "decoder", "--step=newest"], "--step=newest must be best, last or"),
        (["evaluate", "decoder", "--config.evaluation.context=64"], "64"),
        (["evaluate", "decoder", "--config.model.width=8"], "only evaluation.* can"),
        (["evaluate", "elsewhere"], "holds no run"),
    ],
)
def test_wrong_uses_of_a_run(runs, refused, command, words):
    name, run, *rest = command
    before = files(runs / run)
    assert words in refused(name, f"--workdir={runs / run}", *rest)
    assert files(runs / run) == before


def test_a_fitted_model_has_no_steps_and_no_logits(folder, refused, tmp_path, capsys):
    """Catches: a step that is ignored; an AttributeError where a capability is missing."""
    page = f"--config={folder / 'page.py'}:ngram"
    said = refused("train", page, f"--workdir={tmp_path / 'debug'}", "--debug")
    assert "a NgramConfig is fitted to counts; leave it out" in said
    assert not (tmp_path / "debug").exists()
    workdir = f"--workdir={tmp_path / 'run'}"
    assert cli.main(["train", f"--config={folder / 'page.py'}:ngram", workdir]) == 0
    capsys.readouterr()
    assert "has no step 9; use best" in refused("evaluate", workdir, "--step=9", code=2)
    with pytest.raises(RequestError, match="a NgramConfig has no logits"):
        load(tmp_path / "run").apply({"tokens": [[1, 2]]})


def foreign(copy):
    """Another tokenizer in the run's folder."""
    from ablax.data.tokenizers import TOKENIZERS, build_tokenizer

    shutil.rmtree(copy / "tokenizer")
    build_tokenizer(TOKENIZERS["character"](), ["a few letters"], ("bos", "eos")).save(
        copy / "tokenizer"
    )


def tampered(copy):
    file = next(p for p in (copy / "tokenizer").iterdir() if p.suffix == ".json")
    file.write_text(file.read_text().replace(":", ";", 1))


def lost(copy):
    shutil.rmtree(copy / "tokenizer")


@pytest.mark.parametrize(
    ("command", "harm"),
    [
        *itertools.product(["generate", "evaluate", "train"], [foreign, tampered]),
        *itertools.product(["generate", "evaluate"], [lost]),  # train makes the same one again
    ],
)
def test_a_tokenizer_that_is_not_the_runs(folder, copy, refused, command, harm):
    """Catches: ids of another vocabulary fed to the model."""
    harm(copy)
    before = files(copy)
    rest = {
        "generate": ["--prompt=the"],
        "evaluate": [],
        "train": [f"--config={folder / 'page.py'}", "--config.training.steps=4"],
    }[command]
    assert "tokenizer" in refused(command, f"--workdir={copy}", *rest)
    assert files(copy) == before


def test_another_tokenizer_for_the_same_run(folder, copy, refused):
    page = f"--config={folder / 'page.py'}"
    said = refused("train", page, f"--workdir={copy}", "--config.data.tokenizer=character")
    assert "data.tokenizer.kind: 'byte' -> 'character'" in said


def test_data_that_changed_under_a_run(folder, copy, refused, tmp_path):
    """Catches: a run that goes on with other text as if nothing had happened."""
    other = tmp_path / "text.txt"
    config = json.loads((copy / "config.json").read_text())
    other.write_text((folder / "text.txt").read_text() + "\none more")
    config["data"]["source"]["glob"] = str(other)
    (copy / "config.json").write_text(json.dumps(config))
    flags = [f"--config.data.source.glob={other}", "--config.training.steps=4"]
    said = refused("train", f"--config={folder / 'page.py'}", f"--workdir={copy}", *flags)
    assert "the data of" in said
    assert "changed since the run was started" in said


def cut(copy, step):
    state = copy / "checkpoints" / str(step) / "state"
    file = max((p for p in state.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)


def test_a_truncated_checkpoint_falls_back_to_a_good_one(copy, capsys):
    cut(copy, 2)
    assert cli.main(["evaluate", f"--workdir={copy}", "--step=last", "--platform=cpu"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["step"] == 1
    assert "checkpoint 2 in" in captured.err
    assert "is damaged" in captured.err


def test_no_good_checkpoint_at_all(copy, capsys):
    for step in (1, 2):
        cut(copy, step)
    assert cli.main(["generate", f"--workdir={copy}", "--prompt=a", "--step=last"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert "start again with --fresh" in captured.err.strip().splitlines()[-1]


def test_a_broken_run_folder(copy, refused):
    (copy / "config.json").write_text('{"name": ')
    assert "config.json cannot be read" in refused("evaluate", f"--workdir={copy}")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["report", "--workdir={folder}/text.txt"], "sweep.json cannot be read"),
        (["report", "--workdir={folder}/cut"], "sweep.json cannot be read"),
        (["report", "--workdir={folder}/elsewhere/plan"], "is no plan of a sweep"),
        (["new", "{folder}/text.txt/mine"], "cannot be made (Not a directory)"),
        (["evaluate", "--workdir=" + "x" * 300], "holds no run"),
        (["evaluate", "--workdir=x", "--step=\u00b2"], "must be best, last or"),
        (["inspect", "--config={folder}/text.txt"], "is no Python file"),
    ],
)
def test_names_of_the_wrong_things(folder, capsys, command, words):
    """Catches: the traceback of a file where a folder is meant, a plan cut short, a name that is too long."""
    for name, text in (("cut", '{"cells": ['), ("elsewhere/plan", "{}")):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "sweep.json").write_text(text)
    assert cli.main([part.format(folder=folder) for part in command]) == cli.REFUSED
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.source=text:{folder}/none*.txt", "no file matches"),
        ("data.source=text:{folder}/binary.txt", "binary file"),
        ("training.batch_size=4096", "lower training.batch_size"),
        ("evaluation.split=test", "there is no split 'test'"),
        ("evaluation.context=64", "evaluation.context to at most 16"),
    ],
)
def test_a_refused_fresh_start_leaves_the_old_run(folder, copy, refused, change, words):
    """Catches: the old run moved aside before it is known that another can take its place."""
    before = files(copy)
    flags = ["--fresh", f"--config.{change.format(folder=folder)}"]
    said = refused("train", f"--config={folder / 'page.py'}", f"--workdir={copy}", *flags)
    assert words in said
    assert files(copy) == before
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]
    assert load(copy).step == 2


@pytest.mark.parametrize("fresh", [False, True])
def test_a_locked_folder(folder, copy, refused, fresh):
    """Held through another file description, as another process would."""
    before = files(copy)
    with (copy / "lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        page = f"--config={folder / 'page.py'}"
        said = refused("train", page, f"--workdir={copy}", *(["--fresh"] if fresh else []))
    assert "is being written by another process" in said
    assert files(copy) == before


def test_a_full_disk_fails_in_one_line(folder, refused, tmp_path, monkeypatch):
    """Really full disks are in tests/training/test_saving.py. Exit code 1: the request was right."""

    def full(self, step, *arguments):
        raise SaveError(f"checkpoint {step} was not saved in x: the disk is full", 10, 0)

    monkeypatch.setattr(Checkpoints, "save", full)
    page, workdir = f"--config={folder / 'page.py'}", f"--workdir={tmp_path / 'run'}"
    once = ["--config.writers.console=false", "--config.training.steps=1"]
    said = refused("train", page, workdir, *once, code=cli.FAILED)
    assert "the disk is full" in said
