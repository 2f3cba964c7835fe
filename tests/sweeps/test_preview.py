"""A dry run: what arms are and cost, told before anything is written."""

import json
import math

import pytest

from ablax import cli
from ablax.config import RequestError
from ablax.experiment import base
from ablax.run import write_json
from ablax.sweeps import preview as module
from ablax.sweeps.cells import cells_of, record_path
from ablax.sweeps.plan import chain, named, product, seeds
from ablax.sweeps.preview import preview

PLAN = product(
    chain(
        named("base"),
        named("deep", {"model.num_layers": 2}),
        named("long", {"training.steps": 20}),
        named("adam", {"optimizer": "adam"}),
        named("counts", {"model": "ngram:5gram"}),
    ),
    seeds(3),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for index in range(40):
        (folder / f"{index}.txt").write_text(f"document {index} " * 9)
    made = base(model="decoder:tiny", tokenizer="byte", source=f"text:{folder}/*.txt")
    made.model.num_layers, made.model.width, made.model.num_heads = 1, 16, 2
    made.data.sequence_length, made.training.batch_size, made.training.steps = 16, 4, 10
    made.schedule.warmup = 2
    return made


@pytest.fixture(scope="module")
def found(config, tmp_path_factory):
    return preview(config, PLAN, tmp_path_factory.mktemp("none") / "sweep")


def test_changes_are_the_knobs_that_differ(found):
    """Catches: a default that an arm's override repeats, fields of a kind that is gone."""
    arms = {arm["arm"]: arm for arm in found["arms"]}
    assert arms["base"]["changes"] == {}
    assert arms["deep"]["changes"] == {"model.num_layers": 2}
    assert list(arms["long"]["changes"]) == ["training.steps"]
    assert arms["adam"]["changes"].pop("optimizer.kind") == "adam"
    assert all(path.startswith("optimizer.") for path in arms["adam"]["changes"])
    assert arms["adam"]["changes"]["optimizer.weight_decay"] is None
    assert [arm["seeds"] for arm in found["arms"]] == [[0, 1, 2]] * 5


def test_a_seed_is_no_difference(config, tmp_path):
    arms = (
        product(named(name, {"model": "ngram:5gram"}), seeds([seed]))
        for name, seed in (("a", 1), ("b", 2))
    )
    assert [arm["changes"] for arm in preview(config, chain(*arms), tmp_path)["arms"]] == [{}, {}]


def test_costs_follow_what_differs(found):
    """Catches: an arm that is costed with the baseline's configuration, seeds that are not counted."""
    arms = {arm["arm"]: arm for arm in found["arms"]}
    assert arms["base"]["tokens"] == 10 * 4 * 16
    assert arms["long"]["flops"] == 2 * arms["base"]["flops"]
    assert arms["deep"]["parameters"] > arms["base"]["parameters"] == arms["adam"]["parameters"]
    assert arms["deep"]["memory_bytes"] > arms["base"]["memory_bytes"]
    assert arms["counts"]["flops"] is arms["counts"]["disk_bytes"] is None
    assert math.isclose(found["flops"], 3 * sum(arm["flops"] or 0 for arm in found["arms"]))
    assert found["disk_bytes"] == 3 * sum(arm["disk_bytes"] or 0 for arm in found["arms"])
    # Three float32 numbers a parameter: itself and Adam's two moments.
    assert arms["base"]["disk_bytes"] > 12 * arms["base"]["parameters"]


def test_a_sweep_that_does_not_fit_is_refused(config, tmp_path, monkeypatch, capsys):
    """Behind the table, which tells which arm is large. Catches: room asked for cells that are finished."""
    page = "experiments/quickstart.py:tiny"
    monkeypatch.setattr(module, "free_bytes", lambda folder: 10_000)
    code = cli.main(["sweep", f"--config={page}", f"--workdir={tmp_path / 'a'}", "--dry_run"])
    said = capsys.readouterr().err
    assert code == 2
    assert "decoder" in said
    assert "10,000 are free; lower checkpoint.keep" in said.splitlines()[-1]
    assert not preview(config, PLAN, tmp_path)["fits"]
    for cell in cells_of(PLAN):
        write_json(record_path(tmp_path, cell.folder), {"status": "finished"})
    done = preview(config, PLAN, tmp_path)
    assert (done["disk_bytes"], done["fits"]) == (0, True)


def test_a_refused_arm_is_named(config, tmp_path):
    plan = chain(named("good"), named("bad", {"model.num_heads": 3}))
    with pytest.raises(RequestError, match=r"arm 'bad'.*num_heads"):
        preview(config, plan, tmp_path / "sweep")


def test_the_command_prints_it_and_writes_nothing(tmp_path, capsys):
    page = "experiments/quickstart.py:tiny"
    code = cli.main(["sweep", f"--config={page}", f"--workdir={tmp_path / 'a'}", "--dry_run"])
    said = capsys.readouterr()
    assert code == 0
    assert [arm["arm"] for arm in json.loads(said.out)["arms"]] == [
        *("n-gram", "LSTM", "decoder", "encoder"),
    ]
    assert "data.layout=streams, model.kind=lstm" in said.err
    assert not (tmp_path / "a").exists()
