"""A checkpoint becomes a run that all commands take; what is not known completely is refused and leaves nothing."""

import json
import pathlib
import re
import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ablax
import tiny_checkpoints
from ablax import cli
from ablax.config import RequestError
from ablax.experiment import read_experiment, resolve
from ablax.interop.importing import import_hf
from ablax.run import RunFolder
from tiny_checkpoints import ROOM, D, T

WEIGHTS = "model.safetensors"


def quiet(line: str) -> None:
    """Takes a line."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "gpt2"
    tiny_checkpoints.written("gpt2", folder, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("\n".join(f"the {n}th line: {tiny_checkpoints.TEXT}" for n in range(30)))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, checkpoint, corpus) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("imported") / "run"
    changes = {"data.source": f"text:{corpus}", "data.source.document": "line"}
    import_hf(str(checkpoint), workdir, {**changes, "evaluation.documents": 2}, say=quiet)
    return workdir


@pytest.fixture
def copy(checkpoint, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def config(**changes: Any):
    """Changes fields of config.json; None takes one out."""

    def change(folder: pathlib.Path) -> None:
        told = json.loads((folder / "config.json").read_text()) | changes
        told = {name: value for name, value in told.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(told))

    return change


def tensor(name: str, value: Any):
    """Changes a tensor; None takes it out."""

    def change(folder: pathlib.Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
        save_file(tensors, folder / WEIGHTS)

    return change


def cut(folder: pathlib.Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def pickled(folder: pathlib.Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def lost_weights(folder: pathlib.Path) -> None:
    (folder / WEIGHTS).unlink()


def wrong_index(folder: pathlib.Path) -> None:
    places = dict.fromkeys(load_file(folder / WEIGHTS), WEIGHTS)
    places["transformer.wte.weights"] = WEIGHTS
    index = {"weight_map": places}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def no_tokenizer(folder: pathlib.Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


NORM = "transformer.ln_f.bias"
REFUSED = {
    "truncated": (cut, "model.safetensors is damaged or cut short"),
    "missing": (tensor(NORM, None), f"{NORM} is nothing in the checkpoint and [{D}] in the model"),
    "extra": (
        tensor("transformer.h.0.extra", np.ones(3, np.float32)),
        "transformer.h.0.extra is [3] in the checkpoint and nothing in the model",
    ),
    "a layer too many": (
        tensor("transformer.h.2.ln_1.bias", np.ones(D, np.float32)),
        f"transformer.h.2.ln_1.bias is [{D}] in the checkpoint and nothing",
    ),
    "reshaped": (
        tensor(NORM, np.ones((D, 1), np.float32)),
        f"{NORM} is [{D}, 1] in the checkpoint and [{D}] in the model",
    ),
    "integers": (tensor(NORM, np.ones(D, np.int8)), f"{NORM} is I8, and weights must be floats"),
    "a tied head of its own": (
        tensor("lm_head.weight", np.ones((ROOM, D), np.float32)),
        "lm_head.weight differs from transformer.wte.weight",
    ),
    "an untied head without one": (
        config(tie_word_embeddings=False),
        f"lm_head.weight is nothing in the checkpoint and [{ROOM}, {D}]",
    ),
    "unknown field": (config(rope_magic=3), "fields that Ablax does not know: rope_magic"),
    "another computation": (
        config(scale_attn_by_inverse_layer_idx=True),
        "scale_attn_by_inverse_layer_idx=True means a computation",
    ),
    "unknown activation": (config(activation_function="snake"), "activation_function='snake'"),
    "missing field": (config(n_layer=None), "config.json has no n_layer"),
    "unknown family": (config(model_type="gptj"), "model_type=gptj is no family"),
    "another family": (config(model_type="bert"), "architectures=GPT2LMHeadModel has a head"),
    "another head": (
        config(architectures=["GPT2ForSequenceClassification"]),
        "architectures=GPT2ForSequenceClassification has a head",
    ),
    "pickle": (pickled, "pytorch_model.bin and no model.safetensors: it is a pickle"),
    "no weights": (lost_weights, "has no model.safetensors"),
    "index": (wrong_index, "says that transformer.wte.weights is in model.safetensors"),
    "no tokenizer": (no_tokenizer, "is no tokenizer"),
    "larger tokenizer": (config(vocab_size=100), "and the model 100 rows; they do not belong"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_completely_is_refused(name, copy, tmp_path):
    """Catches: a tensor or a field that is passed over in silence; a folder that a refusal leaves behind."""
    change, message = REFUSED[name]
    change(copy)
    with pytest.raises(RequestError, match=re.escape(message)) as refusal:
        import_hf(str(copy), tmp_path / "run", say=quiet)
    assert "\n" not in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_advice_for_a_pickle_names_the_class_with_the_head(copy, tmp_path):
    pickled(copy)
    with pytest.raises(RequestError, match=r"AutoModelForCausalLM as M; .*save_pretrained"):
        import_hf(str(copy), tmp_path / "run", say=quiet)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.num_layers": 3}, "model.num_layers=3 is given by the checkpoint"),
        ({"model.kind": "lstm"}, "model.kind is given by the checkpoint"),
        ({"data.tokenizer": "byte"}, "data.tokenizer is given"),
        ({"data.sequence_length": T + 1}, f"positions.length={T} is less than the {T + 1}"),
    ],
)
def test_no_knob_makes_another_model(overrides, message, checkpoint, tmp_path):
    with pytest.raises(RequestError, match=re.escape(message)):
        import_hf(str(checkpoint), tmp_path / "run", overrides, say=quiet)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_holds_anything_stays(checkpoint, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(RequestError, match="exists and is not empty"):
        import_hf(str(checkpoint), tmp_path, say=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_import_that_is_cut_short_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    """Catches: a run folder that is written in its place."""

    def fail(*arguments: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("ablax.interop.importing.page_text", fail)
    with pytest.raises(ablax.run.RunFailed, match="no space left"):
        import_hf(str(checkpoint), tmp_path / "run", say=quiet)
    assert not any(tmp_path.iterdir())


def test_the_run_says_where_it_came_from(run, checkpoint):
    status = RunFolder(run).status()
    assert status["status"] == "finished"
    assert status["imported"]["source"] == str(checkpoint)
    assert status["imported"]["family"] == "gpt2"
    assert status["imported"]["revision"] is None
    (row,) = ablax.runs(run.parent)
    assert row["parameters"] == status["parameters"] > 0


def test_an_imported_run_is_generated_from_and_evaluated(run):
    """Of a random model: about log V nats a token, or more. Catches: a run whose own data cannot be opened."""
    model = ablax.load(run)
    assert model.step == 0
    (completion,) = model.generate("the quick", max_new_tokens=4, temperature=0)[0]
    assert len(completion.tokens) <= 4
    record = ablax.evaluate(run, "validation")
    assert record["nats_per_token"] > np.log(ROOM) - 1


def test_an_imported_run_is_fine_tuned(run, corpus, tmp_path):
    """By the page beside it, with shorter rows. Catches: a tokenizer with another fingerprint, a parameter that is
    drawn, a table of positions of the new length."""
    page = read_experiment(str(run / "experiment.py"))
    changes = {
        "training.steps": 2,
        "training.batch_size": 2,
        "data.sequence_length": 12,
        "writers.tensorboard": False,
        "schedule": "constant",
        "schedule.warmup": 0,
    }
    tuned = ablax.train(resolve(page.get_config(), changes), tmp_path / "tuned", progress=False)
    assert tuned.finished
    parent = RunFolder(tmp_path / "tuned").status()["parent"]
    assert parent["drawn"] == []
    assert parent["workdir"] == str(run)


def test_a_fork_says_how_to_go_on(run, tmp_path):
    with pytest.raises(RequestError, match=r"a new run from them with --config\.init\.run"):
        ablax.fork(run, tmp_path / "fork")


def test_the_commands(checkpoint, tmp_path, capsys):
    """There and back, through the command line; of a wrong request one line."""
    workdir, out = tmp_path / "run", tmp_path / "out"
    assert cli.main(["import-hf", str(checkpoint), f"--workdir={workdir}"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "gpt2"
    assert cli.main(["export-hf", f"--workdir={workdir}", f"--out={out}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == ["config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"]
    before, after = load_file(checkpoint / WEIGHTS), load_file(out / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert cli.main(["import-hf", str(checkpoint), f"--workdir={workdir}"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
