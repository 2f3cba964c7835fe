"""Refused steps in real runs: a document whose loss is infinite, a fault that does not come again.

The oracle is the pure step, called by hand on the batches that the policy leaves.
"""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ablax
from ablax.config import knob
from ablax.data.corpus import open_corpus
from ablax.experiment import base
from ablax.forensics import activation_not_finite, forensics
from ablax.objectives.causal import CausalConfig
from ablax.run import RunFolder
from ablax.training import session
from ablax.training.checkpoints import Checkpoints
from ablax.training.guard import GuardConfig, released
from ablax.training.ledger import hash_rows
from ablax.training.optimizers import SGDConfig
from ablax.training.parallel import MeshEngine
from ablax.training.recorded import read_ledger
from ablax.training.recovery import (
    NOTHING,
    Diverged,
    Recovery,
    Rewind,
    left_out_after,
    left_out_from,
    position,
)
from ablax.training.saving import Saving
from ablax.training.state import without_hyper

STEPS, POISON = 18, "\x07"


@dataclasses.dataclass(frozen=True)
class Poisoned(CausalConfig):
    """Predicting the poison costs infinitely much, or `times` as much as anything else."""

    times: float = knob(0.0, "0: infinitely much.")

    def transform(self, row, rng, vocabulary):
        batch = super().transform(row, rng, vocabulary)
        bad = batch["targets"] == 2 + ord(POISON)  # behind <bos> and <eos>
        weights = np.where(bad, self.times or np.inf, batch["loss_weights"])
        return {**batch, "loss_weights": weights.astype(np.float32)}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Sixty short documents; two hold the poison, which comes in a step with an evaluation and in one without."""
    path = tmp_path_factory.mktemp("documents") / "lines.jsonl"
    texts = [f"document {i} says {i * i} and {'nothing' if i % 3 else 'more'}" for i in range(60)]
    for index in (7, 23):
        texts[index] += POISON
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@dataclasses.dataclass(frozen=True)
class Spoiling(SGDConfig):
    """Its third update is infinite, from a gradient and a learning rate that are not."""

    def build(self, hyper, learning_rate, decay_mask):
        spoil = optax.scale_by_schedule(lambda count: jnp.where(count == 2, jnp.inf, 1.0))
        return optax.chain(super().build(hyper, learning_rate, decay_mask), spoil)


def experiment(documents, optimizer="adamw", **changes):
    config = base(
        source=f"jsonl:{documents}",
        tokenizer="byte",
        schedule="constant",
        objective=Poisoned,
        optimizer=optimizer,
    )
    config.model.num_layers, config.model.width, config.model.num_heads = 1, 16, 2
    config.data.sequence_length, config.data.split.validation = 16, 0.05
    config.training.batch_size, config.training.steps = 4, STEPS
    config.evaluation.documents, config.evaluation.every = 1, 16
    config.checkpoint.every, config.checkpoint.keep = 6, 9
    config.writers.every, config.writers.tensorboard = 1, False
    config.training.guard.skip_batches = 1
    flat = {k.replace("__", "."): v for k, v in changes.items()}
    return ablax.resolve(config, flat, extend=[Poisoned, Spoiling])


@dataclasses.dataclass
class Hand:
    """The pieces of the run, for stepping by hand."""

    loader: object
    engine: object
    state: object

    def step(self, index, counts=True):
        """One step on the loader's batch; a refused one counts as done where the policy says so."""
        self.state, metrics = self.engine.step(self.state, self.loader.batch(index))
        if int(metrics["refused"]):
            self.state = released(self.state, advance=counts)
        return bool(metrics["refused"])


@pytest.fixture
def hand(documents):
    made = experiment(documents)
    corpus = open_corpus(made.data, ("bos", "eos"))
    loader = session.training_loader(made, corpus)
    clock = session.Clock.of(made.training.steps, loader)
    program = session.build_program(made, corpus.tokenizer.vocab_size, clock)
    engine = session.build_engine(made, program)
    state = engine.init(session.root_key(0), session.hyper_of(made))
    return Hand(loader, engine, state)


@pytest.fixture(scope="module")
def bad_step(documents):
    """The first step, from 1, whose batch holds the poison: found in the text of the batches."""
    made = experiment(documents)
    loader = session.training_loader(made, open_corpus(made.data, ("bos", "eos")))
    bad = [s for s in range(STEPS) if (loader.batch(s)["targets"] == 2 + ord(POISON)).any()]
    assert [step + 1 for step in bad] == [8, 16], "a checkpoint comes first; choose other documents"
    return bad[0] + 1


def train(made, workdir, said=None):
    say = (said if said is not None else []).append
    return ablax.train(made, workdir, extend=[Poisoned, Spoiling], progress=False, say=say)


def leaves_of(workdir):
    last = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    manifest = workdir / "checkpoints" / str(last) / "manifest" / "metadata"
    return json.loads(manifest.read_text())["leaves"]


def same_state(workdir, hand):
    """Whether the run's last checkpoint is the state that was made by hand, bit for bit."""
    with Checkpoints(workdir / "checkpoints", writer=False) as checkpoints:
        found = checkpoints.restore(without_hyper(hand.state))[0]
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(without_hyper(hand.state)), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def events(workdir):
    return RunFolder(workdir).status()["refused"]


@pytest.fixture(scope="module")
def stopped(documents, tmp_path_factory):
    """A run that was stopped by the poison, and what it said."""
    workdir = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Diverged) as ended:
        train(experiment(documents), workdir)
    return workdir, str(ended.value)


def test_stop_names_the_step_and_keeps_nothing_of_it(stopped, bad_step):
    """Catches: an update that is applied before the host knows of its loss."""
    workdir, said = stopped
    assert f"loss is inf at step {bad_step} (deterministic)" in said
    assert f"the last good checkpoint is step {(bad_step - 1) // 6 * 6}" in said
    (event,) = events(workdir)
    assert (event["step"], event["batch"], event["action"]) == (bad_step, bad_step - 1, "stop")


@pytest.mark.parametrize(("every", "found"), [(2, 4), (3, 3)])
def test_parameters_that_an_update_spoils_are_never_saved(documents, every, found, tmp_path):
    """Catches: a save that trusts the guard, and a guard that asks the loss of the next step for nothing."""
    made = experiment(documents, Spoiling, checkpoint__every=every, training__guard__policy="skip")
    with pytest.raises(Diverged, match=rf"params/\S+ is not finite at step {found} ") as ended:
        train(made, tmp_path)
    good = 2 if every == 2 else None
    assert str(good or "no checkpoint was saved") in str(ended.value)
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved == ([good] if good else [])


def test_steps_are_in_the_ledger_before_they_are_in_a_checkpoint(documents, tmp_path, monkeypatch):
    """Catches: a gap that a run leaves in the ledger when it goes on from a checkpoint after a kill."""
    save, recorded = Saving.save, {}

    def saving(self, step, *others):
        recorded[step] = len(read_ledger(tmp_path))
        save(self, step, *others)

    monkeypatch.setattr(Saving, "save", saving)
    train(experiment(documents, training__steps=7), tmp_path)
    assert recorded == {6: 6, 7: 7}


def test_skip_goes_on_without_the_step(documents, hand, bad_step, tmp_path):
    """Catches: a step after the refused one that is lost or made twice, an infinite loss in the records, an evaluation
    or checkpoint of a refused step that is left out."""
    assert train(experiment(documents, training__guard__policy="skip"), tmp_path).step == STEPS
    refused = [index + 1 for index in range(STEPS) if hand.step(index)]
    assert refused[0] == bad_step
    assert [event["step"] for event in events(tmp_path)] == refused
    assert same_state(tmp_path, hand)
    records = [r for r in RunFolder(tmp_path).metrics() if r["split"] == "train"]
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    assert [r["step"] for r in records if r.get("skipped")] == refused
    assert all(np.isfinite(r["loss"]) for r in records if "loss" in r)
    evaluated = [r["step"] for r in RunFolder(tmp_path).metrics() if r["split"] != "train"]
    assert evaluated == [16, 18]


def test_a_spike_is_skipped_and_found_again(documents, bad_step, tmp_path):
    """Catches: statistics that a checkpoint does not keep, so that the step made again is no spike."""
    options = {"policy": "skip", "spike": 8.0, "window": 4}
    changes = {f"training__guard__{name}": value for name, value in options.items()}
    train(experiment(documents, objective__times=1e4, training__steps=10, **changes), tmp_path)
    (event,) = events(tmp_path)
    assert (event["step"], event["action"]) == (bad_step, "skip")
    found = forensics(tmp_path, bad_step, extend=[Poisoned])
    assert found["refused"] == event["why"]
    assert "is a spike" in found["refused"]
    assert found["first_not_finite"] is None


def decided(folder, policy, steps, **kept):
    """How many of the refusals of these steps a patience of 2 stands, and the recovery after them."""
    guard = GuardConfig(policy=policy, patience=2)
    recovery = Recovery(guard, RunFolder(folder), lambda: None, lambda line: None, [])
    recovery.restore({**NOTHING, **kept}, 0)
    for count, step in enumerate(steps):
        try:
            recovery.decide(step, "loss is nan", again=True)
        except Diverged as ended:
            return count if "training.guard.patience=2" in str(ended) else -1, recovery
        except Rewind as back:
            recovery.rewound(back.event, to=step - 1)
    return len(steps), recovery


def test_patience_ends_a_run_that_skips_on_and_on(tmp_path):
    """Catches: steps counted that are not in a row, and a count that a resume forgets."""
    assert decided(tmp_path, "skip", [4, 5, 6])[0] == 2
    stood, recovery = decided(tmp_path, "skip", [4, 5, 8, 9])
    assert (stood, recovery.state()["row"]) == (4, 2)
    assert decided(tmp_path, "skip", [10], **recovery.state())[0] == 0
    assert decided(tmp_path, "rewind", [4, 8, 9])[0] == 2
    assert decided(tmp_path, "rewind", [9], left_out=[[1, 2], [5, 8]])[0] == 0


@pytest.fixture(scope="module")
def rewound(documents, tmp_path_factory):
    """A run that went back, was ended and went on."""
    workdir = tmp_path_factory.mktemp("rewound")
    options = {"training__guard__policy": "rewind", "training__guard__patience": 3}
    train(experiment(documents, training__steps=STEPS - 3, **options), workdir)
    train(experiment(documents, **options), workdir)
    return workdir


def test_rewind_leaves_out_the_batches_since_the_checkpoint(rewound, hand, bad_step):
    """Catches: batches that are read again or left out twice, records of the way that was given up, a list that a
    resume forgets."""
    left_out, saved, before = [], 0, hand.state
    while int(hand.state.step) < STEPS:
        done = int(hand.state.step)
        if done % 6 == 0 and done > saved:
            saved = done
            before = jax.tree.map(np.asarray, hand.state)
        batch = position(done, left_out)
        if hand.step(batch, counts=False):
            left_out.append([position(saved, left_out), batch + 2])
            hand.state = jax.tree.map(jax.numpy.array, before)
    assert left_out
    rewinds = [event for event in events(rewound) if event["action"] == "rewind"]
    assert [event["left_out"] for event in rewinds] == left_out
    assert same_state(rewound, hand)
    records = [r["step"] for r in RunFolder(rewound).metrics() if r["split"] == "train"]
    assert records == list(range(1, STEPS + 1))
    expected = [hash_rows(hand.loader.batch(position(s, left_out)), 0) for s in range(STEPS)]
    assert [int.from_bytes(h, "little") for h in read_ledger(rewound).hashes] == expected


def test_forensics_goes_the_way_of_the_rewind_without_its_checkpoint(rewound, bad_step, tmp_path):
    """As in a run that keeps few checkpoints. Catches: batches that are left out only behind the checkpoint that the
    run went back to, so that another step is looked into than was made."""
    workdir = shutil.copytree(rewound, tmp_path / "run")
    for step in (6, 12):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    later = forensics(workdir, bad_step + 1, extend=[Poisoned])
    assert (later["checkpoint"], later["as_recorded"]) == (0, True)


def test_a_fault_that_does_not_come_again_is_transient(documents, tmp_path, monkeypatch):
    """The run that goes on is the undisturbed one. Catches: a replay with another key or another batch."""
    step, calls = MeshEngine.step, []

    def faulty(self, state, batch):
        calls.append(1)
        if len(calls) == 3:
            batch = {**batch, "loss_weights": batch["loss_weights"] * np.float32(np.nan)}
        return step(self, state, batch)

    skipping = experiment(documents, training__guard__policy="skip", training__steps=6)
    train(skipping, tmp_path / "undisturbed")
    monkeypatch.setattr(MeshEngine, "step", faulty)
    train(skipping, tmp_path / "disturbed")
    assert leaves_of(tmp_path / "disturbed") == leaves_of(tmp_path / "undisturbed")
    first = events(tmp_path / "disturbed")[0]
    assert (first["step"], first["label"], first["action"]) == (3, "transient", "repeat")
    calls.clear()
    with pytest.raises(
        Diverged, match=r"loss is nan at step 3 \(transient\).*suspect the hardware"
    ):
        train(experiment(documents), tmp_path / "stopped")


def test_forensics_names_the_poisoned_document(stopped, bad_step):
    """Catches: a replay that is one step off, rows without their documents, a first place that is not the first."""
    workdir, _ = stopped
    found = forensics(workdir, bad_step, extend=[Poisoned])
    assert (found["step"], found["checkpoint"]) == (bad_step, 6)
    assert found["refused"] == "loss is inf"
    assert found["first_not_finite"] == "loss"
    assert found["as_recorded"] is True
    worst, *others = found["rows"]
    assert math.isinf(worst["loss"])
    lines = [int(name.rpartition(":")[2]) - 1 for name in worst["documents"]]
    assert {7, 23} & set(lines)
    assert all(math.isfinite(row["loss"]) for row in others)
    before = forensics(workdir, bad_step - 1, extend=[Poisoned])
    record = [r for r in RunFolder(workdir).metrics() if r["split"] == "train"][bad_step - 2]
    assert before["loss"] == pytest.approx(
        record["loss"], rel=1e-6
    )  # float32 sums, divided in float64
    assert before["gradient_norm"] == record["gradient_norm"]
    parts = sum(layer["gradient_norm"] ** 2 for layer in before["layers"])
    assert parts**0.5 == pytest.approx(before["gradient_norm"], rel=1e-5)
    assert before["first_not_finite"] is None
    with pytest.raises(ablax.RequestError, match=f"step {bad_step} is refused before"):
        forensics(workdir, bad_step + 1, extend=[Poisoned])


def test_forensics_finds_the_layer_whose_output_is_not_finite(documents, hand):
    """Catches: layers in the order of their names, a stack of layers that is taken for one."""
    params = jax.tree.map(np.array, hand.state.params)
    params["blocks"]["mlp"]["out"]["kernel"][0, 0, 0] = np.nan
    state = dataclasses.replace(hand.state, params=params)
    batch = hand.loader.batch(0)
    where = activation_not_finite(hand.engine.program, state, batch)
    assert where == "output of blocks/mlp/out, layer 0"
    assert activation_not_finite(hand.engine.program, hand.state, batch) is None
    params["tokens"]["embedding"][:] = np.inf
    assert "blocks" not in activation_not_finite(hand.engine.program, state, batch)


def test_rewinds_after_a_checkpoint_count_when_it_is_restored():
    """Catches: a rewind that is forgotten because the run was killed before its next checkpoint."""
    noted = [
        {"action": "stop", "step": 3},
        {"action": "rewind", "to": 4, "left_out": [4, 9]},
        {"action": "rewind", "to": 4, "left_out": [9, 12]},
        {"action": "rewind", "to": 8, "left_out": [16, 20]},
    ]
    assert left_out_from([], noted, 4) == [[4, 9], [9, 12]]
    assert left_out_from([[2, 3]], noted, 4) == [[2, 3]]  # those were of another way to step 4
    assert left_out_from([[4, 9], [9, 12]], noted, 8) == [[4, 9], [9, 12], [16, 20]]
    assert [position(s, [[4, 9], [9, 12], [16, 20]]) for s in (3, 4, 7, 8)] == [3, 12, 15, 20]


def test_the_way_that_a_run_went_in_the_end():
    """Catches: batches still left out that were so on a way which was given up itself."""
    noted = [
        {"action": "skip", "step": 3},
        {"action": "rewind", "to": 4, "left_out": [4, 9]},
        {"action": "rewind", "to": 8, "left_out": [13, 20]},
        {"action": "rewind", "to": 6, "left_out": [11, 15]},
    ]
    assert left_out_after([], noted[:3]) == [[4, 9], [13, 20]]
    assert left_out_after([], noted) == left_out_after([[4, 9]], noted) == [[4, 9], [11, 15]]
