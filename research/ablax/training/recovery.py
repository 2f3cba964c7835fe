"""What becomes of a run after a refused step: it stops, goes on without the step, or goes back."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ablax.run import RunFailed, RunFolder
from ablax.training.guard import GuardConfig, released, why_refused
from ablax.training.seat import Seat, Steps, Wish
from ablax.training.state import without_hyper

Ranges = Sequence[Sequence[int]]
NOTHING: Mapping[str, Any] = {"left_out": [], "last": 0, "row": 0}
"""What a checkpoint keeps of a run without a refused step."""
NOTED = 1000
"""Refused steps that run.json tells; a run that skips may refuse many."""


class Diverged(RunFailed):
    """A step was refused, or a state is not finite, and the policy does not go on."""


class Rewind(Exception):
    """The run has to start over from its newest good checkpoint, without some batches.

    Attributes:
      event: what is known of the refused step (see `Recovery`).
    """

    def __init__(self, event: Mapping[str, Any]):
        super().__init__(f"{event['why']} at step {event['step']}")
        self.event = event


class Refused(Exception):
    """The guard did not apply a step.

    Attributes:
      step: from 1.
      why: for messages.
    """

    def __init__(self, step: int, why: str):
        super().__init__(f"{why} at step {step}")
        self.step, self.why = step, why


def position(step: int, left_out: Ranges) -> int:
    """The loader's step of a run's step, both from 0, where some of the loader's steps are left out.

    Args:
      left_out: [first, one past the last] of the loader's steps, rising.
    """
    for first, past in left_out:
        if step >= first:
            step += past - first
    return step


def first_not_finite(tree: Any) -> str | None:
    """The path of the first leaf that holds a NaN or an infinity; None if there is none."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    good = _finite([leaf for _, leaf in leaves])
    for (path, _), fine in zip(leaves, good.tolist(), strict=True):
        if not fine:
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None


@jax.jit
def _finite(leaves: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


@dataclasses.dataclass(eq=False)
class Recovery:
    """Decides by the policy, and remembers what it has to: the same decisions after a resume.

    An event, in run.json under `refused`, holds `step`, `batch` (the loader's step, from 0), `why`, `label`
    ("deterministic" or "transient") and `action`; of a rewind also `to`, the step of the checkpoint, and `left_out`.

    Attributes:
      config: the policy.
      folder: its run.json takes the events.
      last_good: the newest checkpoint's step, for messages.
      say: takes one line of text.
      events: those that run.json tells, in their order.
      left_out: see `position`.
      last, row: the last refused step, and how many were refused in a row up to it.
    """

    config: GuardConfig
    folder: RunFolder
    last_good: Callable[[], int | None]
    say: Callable[[str], None]
    events: list[dict[str, Any]]
    left_out: list[list[int]] = dataclasses.field(default_factory=list)
    last: int = 0
    row: int = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""
        return {"left_out": self.left_out, "last": self.last, "row": self.row}

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Takes up a checkpoint's state; rewinds to that checkpoint that came after it count too."""
        self.left_out = left_out_from(state["left_out"], self.events, step)
        self.last, self.row = state["last"], state["row"]

    def batch(self, step: int) -> int:
        """The loader's step, from 0, of the run's step, from 1."""
        return position(step - 1, self.left_out)

    def repeat(self, refused: Refused, seat: Seat, batches: Callable[[int], Any]) -> Steps:
        """Repeats a refused step from the state before it, which the guard kept, and goes on by the policy.

        Args:
          seat: holds that state, and then the one after the step.
          batches: start step -> iterator.

        Returns:
          The metrics of the step; None if it is left out.

        Raises:
          Diverged, Rewind: see `decide`.
        """
        where = first_not_finite(without_hyper(seat.state))
        seat.state = released(seat.state)
        metrics = yield Wish(next(batches(refused.step - 1)))
        again = why_refused(metrics) is not None
        why = f"{where} is not finite" if where else refused.why
        self.decide(refused.step, why, again, poisoned=where is not None)
        if again:
            seat.state = released(seat.state, advance=True)
        return None if again else metrics

    def decide(self, step: int, why: str, again: bool, poisoned: bool = False) -> None:
        """Returns if the run goes on: with the repeated step if that was good, else without the step.

        Args:
          step: the refused step, from 1.
          again: whether it was refused again when it was repeated from the state before it.
          poisoned: whether the state itself is not finite, so that there is nothing to go on with.

        Raises:
          Diverged: if the run ends.
          Rewind: if it goes back.
        """
        label = "deterministic" if again else "transient"
        event = {"step": step, "batch": self.batch(step), "why": why, "label": label}
        self.row = self.row + 1 if step == self.last + 1 else 1
        self.last, policy = step, self.config.policy
        if poisoned and policy == "skip":
            policy = "stop"
        used = {"stop": 0, "skip": self.row - 1, "rewind": len(self.left_out)}[policy]
        spent = policy != "stop" and again and used >= self.config.patience
        if policy == "stop" or spent:
            self.note({**event, "action": "stop"})
            raise self.diverged(event, spent)
        if not again:
            self.note({**event, "action": "repeat"})
        elif policy == "skip":
            self.note({**event, "action": "skip"})
        else:
            raise Rewind(event)

    def rewound(self, event: Mapping[str, Any], to: int) -> None:
        """Leaves out the batches from those after checkpoint `to` on."""
        left_out = [position(to, self.left_out), event["batch"] + 1 + self.config.skip_batches]
        self.left_out = [*self.left_out, left_out]
        self.note({**event, "action": "rewind", "to": to, "left_out": left_out})

    def note(self, event: Mapping[str, Any]) -> None:
        """Says what happens and writes it into run.json."""
        detail = f" to step {event['to']}" if "to" in event else ""
        self.say(
            f"{event['why']} at step {event['step']} ({event['label']}): {event['action']}{detail}"
        )
        self.events.append(dict(event))
        self.folder.update(refused=self.events[-NOTED:])

    def diverged(self, event: Mapping[str, Any], spent: bool) -> Diverged:
        """The error that says what happened, the last good checkpoint and what to do."""
        good, step = self.last_good(), event["step"]
        what = f"{event['why']} at step {step} ({event['label']})"
        where = (
            f"the last good checkpoint is step {good}" if good else "no checkpoint was saved before"
        )
        remedy = (
            f"`ablax forensics --workdir={self.folder.path} --step={step}` shows its documents and layers; lower "
            "optimizer.learning_rate, set training.clip_norm, or choose training.guard.policy=skip or rewind"
            if event["label"] == "deterministic"
            else "it was good when repeated from the same state, so suspect the hardware; the same command goes on"
        )
        if spent:
            what += f", after training.guard.patience={self.config.patience}"
        return Diverged(f"{what}; {where}; {remedy}")


def events_of(folder: RunFolder) -> list[dict[str, Any]]:
    """The refused steps that run.json tells (see `Recovery`), oldest first."""
    return folder.status().get("refused", [])


def left_out_from(kept: Ranges, events: Sequence[Mapping[str, Any]], step: int) -> list[list[int]]:
    """The batches that a run leaves out after a checkpoint.

    Args:
      kept: what the checkpoint of `step` keeps.
      events: what run.json tells, rewinds to that checkpoint among them.
    """
    found = [list(one) for one in kept]
    for event in events:
        if event.get("to") == step and event["left_out"][0] == position(step, found):
            found.append(event["left_out"])
    return found


def left_out_after(kept: Ranges, events: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The batches that a run left out on the way that it went in the end, also behind checkpoints that are gone.

    Args:
      kept: what a checkpoint on this way keeps.
      events: what run.json tells of the whole way.
    """
    found = [list(one) for one in kept]
    for event in events:
        if "left_out" in event:  # later ones began on a way that was given up with this
            found = [one for one in found if one[0] < event["left_out"][0]]
            found.append(event["left_out"])
    return found
