"""The loop alone, with an engine that computes nothing: what it evaluates and saves, and what it does not."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from ablax.objectives.sums import Sums
from ablax.run import Preempted, RunFolder
from ablax.training.every import Every
from ablax.training.guard import GuardConfig, GuardState
from ablax.training.loop import Loop
from ablax.training.recovery import Diverged, Recovery, Rewind
from ablax.training.seat import Alone, drive
from ablax.training.signals import Stop
from ablax.training.state import TrainState

PARTS = ("params", "opt_state", "ema", "carry")


class Engine:
    """Counts steps; at one of them a part of the state becomes infinite, although loss and gradient are fine."""

    def __init__(self, bad_step=0, part=""):
        self.bad_step, self.part = bad_step, part

    def step(self, state, batch):
        state = state.replace(step=state.step + 1)
        if int(state.step) == self.bad_step:
            state = dataclasses.replace(state, **{self.part: {"kernel": jnp.array([1.0, jnp.inf])}})
        one = Sums(np.float32(1), np.int32(1))
        return state, {"loss": one, "gradient_norm": np.float32(1), "refused": np.int32(0)}


class Meter:
    """Takes steps and tells nothing."""

    add = staticmethod(lambda metrics, seconds: None)
    take = staticmethod(lambda step: {"step": step, "split": "train"})
    state = staticmethod(dict)


def start():
    parts: Any = {part: {"kernel": jnp.zeros(2)} for part in PARTS}
    rng = jnp.zeros(2, jnp.uint32)
    # Knobs may be infinite in float32: 1e39, a learning rate that nobody can mean.
    return TrainState(
        step=jnp.int32(0),
        hyper={"rate": jnp.float32(jnp.inf)},
        rng=rng,
        guard=GuardState.fresh(),
        **parts,
    )


def run(loop, state):
    """Drives a loop whose seat makes its steps."""
    return drive(loop.run(state), loop.seat.step)


def made(folder, engine, done, policy="stop"):
    guard, stop = GuardConfig(policy=policy), Stop()
    return Loop(
        seat=Alone(engine, stop),
        batches=lambda step: iter(range(step, 100)),
        every=Every(6, log=1, evaluate=2, save=3),
        meter=Meter(),  # type: ignore[arg-type]
        write=lambda record: None,
        evaluate=lambda state, step: (
            done.append(("evaluate", step)) or {"step": step, "split": "v"}
        ),
        save=lambda step, *_: done.append(("save", step)),
        stop=stop,
        recovery=Recovery(guard, RunFolder(folder), lambda: 3, lambda line: None, []),
        seen=lambda step, batch: done.append(("seen", step, batch)),
    )


def test_the_order_is_draw_step_evaluate_save(tmp_path):
    """Catches: a batch that is recorded late, an end without an evaluation and a checkpoint."""
    done: list = []
    state = run(made(tmp_path, Engine(), done), start())
    assert int(state.step) == 6
    assert [entry for entry in done if entry[0] != "seen"] == [
        ("evaluate", 2),
        ("save", 3),
        ("evaluate", 4),
        ("evaluate", 6),
        ("save", 6),
    ]
    assert [entry for entry in done if entry[0] == "seen"] == [("seen", s + 1, s) for s in range(6)]
    assert done.index(("save", 3)) < done.index(("seen", 4, 3))


def test_a_save_hears_whether_the_run_ends_with_it(tmp_path):
    """Catches: a save that fails while the run stops, and is said to be tried again."""
    endings: dict[int, bool] = {}

    def going_to(stop: int) -> Loop:
        loop = made(tmp_path, Engine(), [])
        loop.save = lambda step, *rest: endings.update({step: rest[-1]})

        def seen(step, batch):
            loop.stop.reason = "stopped by SIGTERM" if step == stop else None

        loop.seen = seen
        return loop

    run(going_to(stop=7), start())
    assert endings == {3: False, 6: True}
    endings.clear()
    with pytest.raises(Preempted):
        run(going_to(stop=4), start())
    assert endings == {3: False, 4: True}


@pytest.mark.parametrize("part", PARTS)
def test_a_state_that_is_not_finite_is_neither_evaluated_nor_saved(tmp_path, part):
    """Catches: a check of the parameters only, and one after the evaluation."""
    done: list = []
    with pytest.raises(Diverged) as ended:
        run(made(tmp_path, Engine(4, part), done), start())
    assert f"{part}/kernel is not finite at step 4" in str(ended.value)
    assert "the last good checkpoint is step 3" in str(ended.value)
    assert [entry for entry in done if entry[0] != "seen"] == [("evaluate", 2), ("save", 3)]


def test_such_a_state_cannot_be_skipped_but_gone_back_from(tmp_path):
    """Catches: a run that skips steps on a state that nothing can mend."""
    with pytest.raises(Diverged, match="ema/kernel is not finite at step 4"):
        run(made(tmp_path, Engine(4, "ema"), [], "skip"), start())
    with pytest.raises(Rewind) as back:
        run(made(tmp_path, Engine(4, "ema"), [], "rewind"), start())
    assert (back.value.event["step"], back.value.event["batch"]) == (4, 3)
