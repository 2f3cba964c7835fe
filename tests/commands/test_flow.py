"""The commands on real runs, end to end: train, evaluate, generate, watch, runs, fork, sweep, report."""

import json

import pytest

from ablax import cli

PAGE = '''"""A page for the tests."""

from ablax.experiment import base
from ablax.sweeps.plan import chain, named, product, seeds


def get_config(size="tiny"):
    config = base(tokenizer="byte", schedule="constant")
    config.data.source = {"kind": "text", "glob": PATH, "document": "line"}
    config.data.split.validation = 0.2
    config.data.sequence_length = 16
    config.model.num_layers = 1
    config.model.width = 16
    config.model.num_heads = 2
    config.training.steps = 6
    config.training.batch_size = 4
    config.evaluation.documents = 4
    config.evaluation.every = 3
    config.writers.every = 1
    return config


def get_sweep():
    arms = [named(name, {"model": "ngram", "model.order": n}) for n, name in ((2, "bigram"), (3, "trigram"))]
    return product(chain(*arms), seeds(2))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    lines = [f"the {number}th line says {'abc' * (number % 5)}" for number in range(120)]
    (folder / "text.txt").write_text("\n".join(lines))
    (folder / "page.py").write_text(PAGE.replace("PATH", repr(str(folder / "text.txt"))))
    return folder


@pytest.fixture
def ablax(folder, capsys):
    """Runs a command in this process: (exit code, its JSON or None, what it said)."""

    def run(*arguments):
        code = cli.main([*map(str, arguments)])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else None, captured.err

    return run


@pytest.fixture(scope="module")
def trained(folder):
    """The folder of a finished run."""
    arguments = [f"--config={folder / 'page.py'}:tiny", f"--workdir={folder / 'run'}"]
    assert cli.main(["train", *arguments, "--platform=cpu"]) == 0
    return folder / "run"


def test_train_says_what_it_did_and_does_not_train_twice(folder, trained, ablax):
    code, found, said = ablax(
        "train", f"--config={folder / 'page.py'}", f"--workdir={trained}", "--platform=cpu"
    )
    assert code == 0
    assert "is finished at step 6" in said
    assert (found["finished"], found["step"]) == (True, 6)
    assert found["metrics"]["bits_per_byte"] > 0
    assert found["parameters"] > 0
    assert found["seconds"] > 0


def test_another_result_in_the_same_folder_is_refused(folder, trained, ablax):
    arguments = [f"--config={folder / 'page.py'}", f"--workdir={trained}", "--platform=cpu"]
    code, found, said = ablax("train", *arguments, "--config.model.width=32")
    assert (code, found) == (2, None)
    assert "model.width: 16 -> 32" in said
    assert len(said.strip().splitlines()) == 1


def test_evaluate(trained, ablax):
    code, found, said = ablax(
        "evaluate", f"--workdir={trained}", "--step=last", "--split=train", "--platform=cpu"
    )
    assert (code, found["split"], found["step"]) == (0, "train", 6)
    assert "bits_per_byte" in said
    code, _, said = ablax("evaluate", f"--workdir={trained}", "--step=first", "--platform=cpu")
    assert code == 2
    assert "--step=first must be best, last or the number of a step" in said


def test_generate_and_fill(trained, ablax):
    arguments = ["--prompt=the ", "--max_new_tokens=4", "--num_return_sequences=2", "--top_k=5"]
    run = [f"--workdir={trained}", "--platform=cpu"]
    code, found, _ = ablax("generate", *run, *arguments)
    assert code == 0
    assert [len(row) for row in found["completions"]] == [2]
    assert ablax("generate", *run, *arguments)[1] == found
    told = ["--alternatives=2", "--echo", "--logit_bias=5=9.5", "--frequency_penalty=1"]
    code, found, _ = ablax("generate", *run, *arguments, *told)
    one = found["completions"][0][0]
    assert (code, len(one["alternatives"][0]), one["prompt"]["log_probs"][0]) == (0, 2, None)
    search = ["--num_beams=2", "--early_stopping=never", "--length_penalty=0"]
    code, found, _ = ablax("generate", *run, *arguments[:3], *search)
    first, second = found["completions"][0]
    assert (code, first["score"] >= second["score"]) == (0, True)
    code, found, _ = ablax("generate", *run, "--prompt=the ")  # as it stands in the help
    assert (code, len(found["completions"][0][0]["tokens"]) <= 64) == (0, True)
    code, found, said = ablax("generate", *run, *arguments[:2], "--stream")
    text = found["completions"][0][0]["text"]
    assert (code, said) == (0, text + "\n")
    code, found, _ = ablax("generate", *run, "--prompt=" + "the " * 9, "--truncation")
    assert (code, len(found["completions"][0][0]["tokens"])) == (0, 8)
    code, found, said = ablax("fill", *run, "--text=the [MASK]")
    assert (code, found) == (2, None)
    assert "cannot fill masks" in said


def test_watch_and_runs(folder, trained, capsys):
    assert cli.main(["watch", f"--workdir={trained}", "--once"]) == 0
    shown = capsys.readouterr().out
    assert "nats per token over optimizer steps" in shown
    assert "finished" in shown
    assert cli.main(["runs", f"--root={folder}"]) == 0
    captured = capsys.readouterr()
    assert str(trained) in [row["workdir"] for row in json.loads(captured.out)]
    assert "bits_per_byte" in captured.err


def test_fork_goes_on_from_its_parent(folder, trained, ablax):
    child = folder / "child"
    longer = "--config.training.steps=8"
    code, found, said = ablax("fork", trained, f"--workdir={child}", longer)
    assert (code, found["step"], found["parent"]) == (0, 6, str(trained))
    assert f"ablax train --config=FILE --workdir={child} {longer}" in said
    page = f"--config={folder / 'page.py'}"
    code, found, said = ablax("train", page, f"--workdir={child}", longer, "--platform=cpu")
    assert (code, found["step"]) == (0, 8), said
    code, shown, told = ablax("diff", trained, child)
    assert code == 0
    assert shown["knobs"] == {"training.steps": [6, 8]}
    assert shown["data"] == shown["code"] == shown["versions"] == {}
    words = "the same first 6 batches; then only one goes on"
    assert shown["batches"] == {"same": False, "steps": [6, 8], "parts_at": 7, "said": words}
    assert words in told
    assert shown["related"] == f"{child} goes on from step 6 of {trained}"
    first, second = shown["results"]["bits_per_byte"]
    assert 0 < second < first
    assert "resuming at step 6" in said


def test_prepare_needs_no_model(folder, ablax):
    page, longer = f"--config={folder / 'page.py'}", "--config.data.split.validation=0.3"
    code, found, said = ablax("prepare", page, "--offline", longer)
    assert code == 0
    train, validation = said.strip().splitlines()
    assert train.startswith("ablax: tokenising train: ")
    assert validation.startswith("ablax: tokenising validation: ")
    assert found["splits"]["train"]["documents"] > found["splits"]["validation"]["documents"] > 0


def test_sweep_then_report(folder, ablax):
    """Catches: a sweep that runs finished cells again, that mixes two experiments, or whose report loses an arm."""
    arguments = [
        f"--config={folder / 'page.py'}",
        f"--workdir={folder / 'sweep'}",
        "--platform=cpu",
        "--launcher=inline",
    ]
    code, found, said = ablax("sweep", *arguments)
    assert code == 0
    assert set(found["cells"].values()) == {"finished"}
    assert "trigram/seed1: finished" in said
    code, found, said = ablax("sweep", *arguments)
    assert (code, set(found["cells"].values())) == (0, {"skipped"})
    for knob, value in (("data.sequence_length", 32), ("training.steps", 7)):
        code, found, said = ablax("sweep", *arguments, f"--config.{knob}={value}")
        assert (code, found) == (2, None)
        assert "arm 'bigram'" in said
        assert knob in said
    code, found, said = ablax("report", f"--workdir={folder / 'sweep'}")
    assert code == 0
    assert found["baseline"] == "bigram"
    assert {row["arm"] for row in found["arms"]} == {"bigram", "trigram"}
    # An n-gram model has no randomness: its seeds agree, and that must not look certain.
    assert "same for every seed" in said
    assert [row["changes"] for row in found["arms"] if row["changes"]] == [{"model.order": [2, 3]}]
    assert "- trigram: model.order 2 -> 3\n" in (folder / "sweep" / "report.md").read_text()
    assert "model.order 2 -&gt; 3" in (folder / "sweep" / "report.html").read_text()


def test_a_failing_cell_makes_the_sweep_exit_with_1(folder, ablax, monkeypatch):
    from ablax import trainer

    def fail(*arguments, **options):
        raise RuntimeError("loss is nan at step 3")

    monkeypatch.setattr(trainer, "train", fail)
    arguments = [f"--config={folder / 'page.py'}", f"--workdir={folder / 'bad'}", "--platform=cpu"]
    code, found, said = ablax("sweep", *arguments, "--launcher=inline", "--retries=0")
    assert code == 1
    assert len(found["failed"]) == 4
    assert "bigram/seed0 failed: loss is nan at step 3" in said
