"""Training a folder: start, go on, refuse, stop, branch off. Real runs of a few steps of one tiny decoder."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import ablax
from ablax import cli
from ablax.config import RequestError, to_dict
from ablax.experiment import base
from ablax.model import LOADED
from ablax.run import Paused, RunFailed, RunFolder, write_json
from ablax.training.checkpoints import Checkpoints
from ablax.training.debug import NotOverfit
from ablax.training.meter import CLOCKED
from ablax.training.recorded import compare_ledgers, read_ledger
from ablax.training.session import abstract_state, build_program
from ablax.training.state import without_hyper

STEPS = 6
HERE = pathlib.Path(__file__).parent


def small(**changes):
    """The tiny experiment, with flat overrides (`training__steps=8`)."""
    config = base(source="builtin:python_reference", tokenizer="byte", schedule="constant")
    config.name = "parent"
    config.model.num_layers, config.model.width, config.model.num_heads = 1, 16, 2
    config.data.sequence_length = 16
    config.training.batch_size, config.training.steps = 4, STEPS
    config.evaluation.documents, config.evaluation.every = 1, 2
    config.checkpoint.every, config.checkpoint.keep = 2, 5
    config.writers.every, config.writers.tensorboard = 1, False
    return ablax.resolve(config, {k.replace("__", "."): v for k, v in changes.items()})


def train(workdir, said=None, **options):
    """Trains quietly; messages go to the list."""
    fresh, debug = options.pop("fresh", False), options.pop("debug", False)
    offline = options.pop("offline", False)
    say = (said if said is not None else []).append
    more = {"until": options.pop("until", None), "offline": offline}
    config = small(**options)
    return ablax.train(config, workdir, say=say, progress=False, fresh=fresh, debug=debug, **more)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """The folder of a finished run of six steps; nobody may write in it."""
    workdir = tmp_path_factory.mktemp("trainer") / "parent"
    assert train(workdir).finished
    return workdir


@pytest.fixture
def copy(parent, tmp_path):
    """A copy of it to write in."""
    return pathlib.Path(shutil.copytree(parent, tmp_path / "copy"))


def files(workdir):
    """Everything in a folder but who holds it."""
    return {
        str(p.relative_to(workdir)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in workdir.rglob("*")
        if p.is_file() and p.name != "lock"
    }


def steps_of(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def state_of(workdir, step):
    """Hash of every array of a checkpoint, by its path."""
    manifest = workdir / "checkpoints" / str(step) / "manifest" / "metadata"
    return json.loads(manifest.read_text())["leaves"]


def records_of(workdir):
    """The records without what the machine decides."""
    records = RunFolder(workdir).metrics()
    return [{k: v for k, v in r.items() if k not in CLOCKED} for r in records]


def arrays_of(workdir, step):
    """The state of a checkpoint as NumPy arrays, by path."""
    with Checkpoints(workdir / "checkpoints", writer=False) as checkpoints:
        experiment = ablax.resolve(RunFolder(workdir).config())
        vocabulary = ablax.load(workdir, "last").tokenizer.vocab_size
        program = build_program(experiment, vocabulary, LOADED)
        return checkpoints.restore(without_hyper(abstract_state(program, experiment)), step)[0]


def equal(one, two):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_a_run_says_what_it_was(parent):
    status = RunFolder(parent).status()
    assert (status["status"], status["step"], status["name"]) == ("finished", STEPS, "parent")
    (start,) = status["starts"]
    assert start["versions"]["jax"] == jax.__version__
    assert start["code"]["sha256"]
    assert steps_of(parent) == [2, 4, 6]
    assert [r["step"] for r in records_of(parent) if r["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records_of(parent) if r["split"] != "train"] == [2, 4, 6]


def test_a_pause_changes_nothing(parent, tmp_path):
    """Catches: a run that goes on beyond the step, or from it when it was ended before anybody knew; one that is not
    measured or saved there, or measured once more."""
    folder = tmp_path / "paused"
    for _ in range(2):
        with pytest.raises(Paused, match="paused at step 3 of 6"):
            train(folder, until=3)
        assert steps_of(folder) == [2, 3]
        assert RunFolder(folder).status()["status"] == "paused"
    assert train(folder).finished
    assert state_of(folder, STEPS) == state_of(parent, STEPS)
    measured = [r for r in records_of(folder) if (r["step"], r["split"]) == (3, "validation")]
    assert len(measured) == 1
    assert [r for r in records_of(folder) if r not in measured] == records_of(parent)


def test_a_finished_run_says_so_and_does_nothing(copy):
    """Catches: a start recorded, a metric evaluated or a checkpoint saved once more."""
    before, said = files(copy), []
    run = train(copy, said)
    assert (run.finished, run.step) == (True, STEPS)
    assert len(said) == 1
    assert f"is finished at step {STEPS}; raise training.steps" in said[0]
    assert files(copy) == before


def test_other_results_are_refused_with_the_difference_and_the_ways_out(copy):
    before = files(copy)
    with pytest.raises(RequestError) as refused:
        train(copy, model__width=32, optimizer__learning_rate=0.5)
    message = str(refused.value)
    assert "model.width: 16 -> 32" in message
    assert "optimizer.learning_rate: " in message
    assert all(way in message for way in ("set them back", "--workdir", "--fresh", "ablax fork"))
    assert files(copy) == before


def test_a_longer_run_of_a_constant_schedule_is_the_run_planned_so_long(copy, tmp_path):
    """With other execution and cosmetic knobs on the way, which are recorded.

    Catches: a start of the loader, the metrics or the random numbers from step 0."""
    other = {"checkpoint__every": 4, "data__prefetch": 2, "writers__every": 2, "name": "longer"}
    said = []
    run = train(copy, said, training__steps=8, **other)
    assert (run.finished, run.step) == (True, 8)
    assert f"resuming at step {STEPS}" in said
    status = RunFolder(copy).status()
    assert status["name"] == "longer"
    first, second = status["starts"]
    assert "changed" not in first
    assert second["changed"]["training.steps"] == ["6", "8"]
    assert second["changed"]["data.prefetch"] == [8, 2]
    assert second["changed"]["name"] == ["parent", "longer"]
    planned = tmp_path / "planned"
    train(planned, training__steps=8)
    assert state_of(copy, 8) == state_of(planned, 8)


def test_a_longer_run_of_a_cosine_is_refused_before_anything_is_written(copy):
    """Catches: a resume whose learning rate jumps."""
    write_json(copy / "config.json", to_dict(small(schedule="cosine")))
    before = files(copy)
    with pytest.raises(RequestError, match="from 6 to 8 changes the learning rates of the 6 steps"):
        train(copy, training__steps=8, schedule="cosine")
    with pytest.raises(RequestError, match=r"is at step 6, and training\.steps=5 leaves nothing"):
        train(copy, training__steps=5, schedule="cosine")
    assert files(copy) == before


def test_fresh_moves_the_old_run_aside_and_another_seed_is_another_run(copy, parent):
    said, before = [], files(copy)
    run = train(copy, said, fresh=True, seed=1, training__steps=2)
    assert (run.finished, run.step) == (True, 2)
    assert steps_of(copy) == [2]
    (aside,) = copy.parent.glob("copy.*")
    assert f"moved the old run to {aside}" in said
    assert files(aside) == before
    mine, other = state_of(copy, 2), state_of(parent, 2)
    assert [r["loss"] for r in records_of(copy)[:2]] != [r["loss"] for r in records_of(parent)[:2]]
    assert all(mine[path] != other[path] for path in mine if "kernel" in path)


def test_same_config_and_seed_are_the_same_run(parent, tmp_path):
    """Catches: a seed from the clock, an order from a set or a directory."""
    train(tmp_path / "again")
    assert state_of(tmp_path / "again", STEPS) == state_of(parent, STEPS)
    assert records_of(tmp_path / "again") == records_of(parent)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(
    ("rate", "good"),
    [(1e30, "the last good checkpoint is step 1"), (1e39, "no checkpoint was saved before")],
)
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys, rate, good):
    """At 1e30 the second loss is NaN; at 1e39 the first loss is fine but the parameters after it are not.

    Catches: a state that is not finite saved as the newest checkpoint, from which every resume fails."""
    page = tmp_path / "page.py"
    page.write_text(
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from test_trainer import small\n"
        "from ablax.config import to_config_dict\n"
        "get_config = lambda: to_config_dict(small(checkpoint__every=1))\n"
    )
    workdir = tmp_path / "run"
    changed = f"--config.optimizer.learning_rate={rate}"
    code = cli.main(
        ["train", f"--config={page}", f"--workdir={workdir}", "--platform=cpu", changed]
    )
    assert code == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert " at step " in said
    assert good in said
    assert RunFolder(workdir).status()["status"] == "failed"
    for step in steps_of(workdir):
        params = arrays_of(workdir, step).params
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_full_disk_does_not_hide_why_the_run_ended(copy, monkeypatch):
    """Catches: a traceback about run.json in place of the one line about the checkpoint."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def ends(*_):
        monkeypatch.setattr(RunFolder, "update", full)
        raise RunFailed("checkpoint 8 was not saved")

    monkeypatch.setattr("ablax.training.descent.Descent.run", ends)
    with pytest.raises(RunFailed, match="checkpoint 8"):
        train(copy, training__steps=8)


def test_debug_overfits_one_batch_and_keeps_nothing(tmp_path):
    """Catches: a long warm-up that the 200 steps of the check refuse, or never leave."""
    said = []
    options = {"optimizer__learning_rate": 0.03, "schedule__warmup": 900, "training__steps": 1000}
    run = train(tmp_path / "run", said, debug=True, **options)
    assert run.metrics["last"] <= run.metrics["first"] / 2
    assert "debug: loss of one batch went from" in said[-1]
    assert not (tmp_path / "run").exists()


def test_debug_fails_where_nothing_is_learned(tmp_path, monkeypatch):
    """Catches: a check that cannot fail."""
    monkeypatch.setattr("ablax.training.debug.STEPS", 20)
    with pytest.raises(NotOverfit, match="did not halve"):
        train(tmp_path / "run", debug=True, optimizer__learning_rate=1e-9)


def test_another_rule_has_its_own_files(copy):
    """Catches: an evaluation that replaces what training measured, so that a report finds another rule."""
    before = (copy / "evals" / "validation-6.npz").read_bytes()
    found = ablax.evaluate(copy, step="last", overrides={"evaluation.documents": 2})
    assert found["documents"] == 2
    assert (copy / "evals" / "validation-6.npz").read_bytes() == before
    assert (copy / "evals" / "validation-6,documents=2.npz").is_file()


def test_an_unchanged_fork_is_its_parents_continuation(parent, tmp_path):
    """Catches: a fork that draws its first batches, or random numbers, again; a ledger of what only its parent saw."""
    child = tmp_path / "child"
    found = ablax.fork(f"{parent}@4", child)
    assert (found["step"], found["parent"], found["changed"]) == (4, str(parent), {})
    assert compare_ledgers(parent, child).steps == (STEPS, 4)
    said = []
    assert train(child, said).finished
    assert said[0] == "resuming at step 4"
    assert state_of(child, STEPS) == state_of(parent, STEPS)
    assert records_of(child) == records_of(parent)
    assert compare_ledgers(parent, child).same
    assert read_ledger(child).documents(STEPS) == read_ledger(parent).documents(STEPS)
    origin = RunFolder(child).status()["parent"]
    assert (origin["workdir"], origin["step"]) == (str(parent), 4)
    assert origin["fingerprint"] == RunFolder(parent).status()["fingerprint"]


def test_a_fork_may_change_what_a_resume_may_not(parent, tmp_path):
    """Catches: traced knobs restored from the parent's state, so that the change does nothing."""
    child, changes = tmp_path / "child", {"optimizer.learning_rate": 1e-2, "schedule": "linear"}
    found = ablax.fork(f"{parent}@4", child, changes)
    assert {"optimizer.learning_rate", "schedule.kind"} <= set(found["changed"])
    with pytest.raises(RequestError, match=r"optimizer\.learning_rate: 0\.01 -> "):
        train(child)  # the child's own configuration binds from now on
    assert train(child, optimizer__learning_rate=1e-2, schedule="linear").step == STEPS
    rates, before = (
        [r["learning_rate"] for r in records_of(folder) if r["split"] == "train"]
        for folder in (child, parent)
    )
    assert rates[:4] == before[:4]
    np.testing.assert_allclose(rates[4:], [0.01 * (1 - 3 / 5), 0.01 * (1 - 4 / 5)], rtol=1e-6)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("@3", "has no checkpoint of step 3; kept steps are [2, 4, 6]"),
        ("@last", "the step behind @ must be a number"),
    ],
)
def test_a_fork_of_what_is_not_there(parent, tmp_path, source, message):
    with pytest.raises(RequestError) as refused:
        ablax.fork(f"{parent}{source}", tmp_path / "child")
    assert message in str(refused.value)
    assert not (tmp_path / "child").exists()


def test_a_fork_that_changes_the_tokenizer_is_refused(parent, tmp_path):
    """Catches: a configuration that names a tokenizer which the run does not use."""
    with pytest.raises(RequestError, match=r"data\.tokenizer\.kind cannot change in a fork"):
        ablax.fork(parent, tmp_path / "child", {"data.tokenizer": "character"})


def test_a_fork_that_is_cut_short_leaves_nothing(copy, tmp_path, monkeypatch):
    """Catches: a half-made folder, which the next start takes for a run with a checkpoint."""
    # As if the parent dropped the step after it was verified.
    monkeypatch.setattr(
        "ablax.folders.check_whole", lambda *_: shutil.rmtree(copy / "checkpoints" / "6")
    )
    with pytest.raises(RunFailed, match="could not be copied"):
        ablax.fork(f"{copy}@6", tmp_path / "child")
    assert os.listdir(tmp_path) == ["copy"]
    shutil.rmtree(copy / "checkpoints")
    monkeypatch.undo()
    with pytest.raises(RequestError, match=r"kept steps are \[\]"):
        ablax.fork(copy, tmp_path / "child")


def test_a_fork_has_the_code_of_its_day(copy, tmp_path):
    """Catches: a child that is refused because its parent's code was edited, with the advice to fork."""
    RunFolder(copy).update(extension_code={"mine:Model": "hash of what it was"})
    ablax.fork(copy, tmp_path / "child")
    assert RunFolder(tmp_path / "child").status()["extension_code"] == {}


@pytest.mark.parametrize(("step", "steps"), [(4, 3), (6, 6)])
def test_a_fork_with_nothing_to_do_is_refused(parent, tmp_path, step, steps):
    """Catches: a child that finishes at once with its parent's metrics."""
    ablax.fork(f"{parent}@{step}", tmp_path / "child", {"training.steps": steps})
    with pytest.raises(RequestError, match="leaves nothing to do"):
        train(tmp_path / "child", training__steps=steps)


def test_runs_is_a_table(parent):
    (row,) = ablax.runs(parent.parent)
    assert row["workdir"] == str(parent)
    assert (row["name"], row["status"], row["step"]) == ("parent", "finished", STEPS)
    assert row["metrics"]["bits_per_byte"] == records_of(parent)[-1]["bits_per_byte"]
    assert row["parameters"] == ablax.load(parent).parameters
    with pytest.raises(RequestError, match="does not exist"):
        ablax.runs(parent / "nowhere")


def test_what_was_prepared_trains_offline(tmp_path, monkeypatch):
    """Catches: a tokenisation, or a look at the network, that prepare did not do."""
    import socket

    (tmp_path / "text.txt").write_text(
        "\n".join(f"line {number} of a text" for number in range(99))
    )
    source = {
        "data.source": f"text:{tmp_path / 'text.txt'}",
        "data.source.document": "line",
        "data.split.validation": 0.2,
    }
    options = {key.replace(".", "__"): value for key, value in source.items()}
    found = ablax.prepare(small(**options))
    assert found["splits"]["train"]["documents"] + found["splits"]["validation"]["documents"] == 99

    def refuse(*arguments):
        raise AssertionError("looked at the network")

    def tokenised(*arguments):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("ablax.data.exact_tokenizers.ByteTokenizer.encode_batch", tokenised)
    assert train(tmp_path / "run", offline=True, training__steps=1, **options).finished


def test_load_by_step(parent):
    nats = {r["step"]: r["nats_per_token"] for r in records_of(parent) if r["split"] != "train"}
    assert ablax.load(parent, "last").step == STEPS
    assert ablax.load(parent, "best").step == min(nats, key=lambda step: (nats[step], -step))
    early = ablax.load(parent, 2)
    assert early.step == 2
    assert not equal(early.params, ablax.load(parent, "last").params)
    with pytest.raises(RequestError, match=r"no checkpoint of step 3 .* \[2, 4, 6\]"):
        ablax.load(parent, 3)


def test_evaluation_again_is_the_evaluation_of_the_run(copy):
    """Catches: other parameters, documents or context in `evaluate` than during training."""
    recorded = next(r for r in records_of(copy) if r["split"] == "validation" and r["step"] == 4)
    found = ablax.evaluate(copy, step=4)
    assert {k: found[k] for k in recorded} == recorded


def damage(workdir, step):
    """Cuts the largest file of a checkpoint in half."""
    state = workdir / "checkpoints" / str(step) / "state"
    file = max((p for p in state.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)


def test_a_damaged_checkpoint_is_skipped_and_said(copy, capsys):
    """On stderr, because a command's stdout is its JSON. Catches: a message in the middle of a result."""
    damage(copy, 6)
    model = ablax.load(copy, "last")
    captured = capsys.readouterr()
    assert model.step == 4
    assert captured.out == ""
    assert "checkpoint 6 in " in captured.err
    assert "is damaged" in captured.err
    assert "going back to checkpoint 4" in captured.err
    assert steps_of(copy) == [2, 4, 6]  # a reader moves nothing
    with pytest.raises(RequestError, match="checkpoint 4 is, ask for it"):
        ablax.load(copy, 6)


def test_a_run_resumes_before_a_damaged_checkpoint(copy, tmp_path):
    """Catches: a resume that gives up, or that goes on with other metrics than the older state's."""
    damage(copy, 6)
    said = []
    assert train(copy, said, training__steps=8).step == 8
    assert any("checkpoint 6" in line and "is damaged" in line for line in said)
    assert "resuming at step 4" in said
    train(tmp_path / "planned", training__steps=8)
    assert state_of(copy, 8) == state_of(tmp_path / "planned", 8)
    assert records_of(copy) == records_of(tmp_path / "planned")


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run like the parent in two micro-batches, with averaged parameters, a checkpoint per step."""
    workdir = tmp_path_factory.mktemp("averaged") / "run"
    train(workdir, training__accumulation=2, training__ema_decay=0.5, checkpoint__every=1)
    return workdir


def test_accumulation_changes_nothing_but_rounding(parent, averaged):
    """Catches: a mean of means, a micro-batch left out."""
    one, two = (
        [r["loss"] for r in records_of(folder) if r["split"] == "train"]
        for folder in (parent, averaged)
    )
    # Sums of 64 float32 terms in another order, then six steps of Adam.
    np.testing.assert_allclose(one, two, rtol=1e-4)


def test_averaged_parameters_are_the_ones_that_count(averaged):
    """Catches: evaluation, or `load`, with the raw parameters."""
    before, after = (arrays_of(averaged, step) for step in (5, 6))
    expected = jax.tree.map(lambda a, p: 0.5 * a + 0.5 * p, before.ema, after.params)
    found = ablax.load(averaged, 6).params
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    assert not equal(found, after.params)
    last = records_of(averaged)[-1]
    assert ablax.evaluate(averaged, step=6)["nats_per_token"] == last["nats_per_token"]


def test_schedule_free_is_evaluated_at_its_average(tmp_path):
    """Catches: evaluation at the point where gradients are taken (Defazio et al. 2024, section 2: x, not y)."""
    train(tmp_path, optimizer="schedule_free_adamw", training__steps=2)
    model, state = ablax.load(tmp_path, "last"), arrays_of(tmp_path, 2)
    assert not equal(model.params, state.params)
    last = records_of(tmp_path)[-1]
    assert ablax.evaluate(tmp_path, step=2)["nats_per_token"] == last["nats_per_token"]


CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
import ablax
from test_trainer import small
run = ablax.train(small(training__steps=1000000, writers__tensorboard=True), sys.argv[1], progress=False)
print(run.finished, run.step, "torch" in sys.modules, "tensorflow" in sys.modules)
"""


def test_ctrl_c_saves_and_returns(tmp_path):
    """A real process. Its TensorBoard writer must not have imported PyTorch, which tensorboardX does by itself."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), str(HERE)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    metrics, end = tmp_path / "metrics.jsonl", time.monotonic() + 100
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    finished, step, torch, tensorflow = out.split()
    assert (finished, torch, tensorflow) == ("False", "False", "False")
    assert int(step) == steps_of(tmp_path)[-1]
    assert RunFolder(tmp_path).status()["status"] == "interrupted"
    assert list((tmp_path / "tensorboard").iterdir())
