"""Who is named when ranks are stuck. Real processes that are killed, frozen and stuck: tests/parallel."""

import dataclasses

import pytest

from ablax.config import RequestError
from ablax.training.heartbeat import Beat, HeartbeatConfig, stuck

CONFIG = HeartbeatConfig(silence=10, stuck=60, patience=600)


def beats(*states):
    return {
        rank: Beat(1, phase, step, seconds, f"host{rank}", "", 100 + rank)
        for rank, (phase, step, seconds) in enumerate(states)
    }


@pytest.mark.parametrize(
    ("states", "culprit"),
    [
        # The others wait in the collective of a step that it has not come to.
        ([("step", 8, 61), ("data", 7, 62), ("step", 8, 61)], 1),
        ([("step", 8, 61), ("step", 8, 61), ("data", 8, 59)], 2),
        ([("step", 7, 65), ("step", 8, 62)], 0),
        # The one that evaluates may still take its time, and the others are in a step for a minute.
        ([("step", 7, 61), ("evaluate", 6, 61)], 1),
        ([("compile", 1, 601), ("compile", 1, 640)], 1),
    ],
)
def test_the_rank_that_is_least_far_is_named(states, culprit):
    """Catches: naming the rank that waits longest, which is a victim."""
    line = stuck(beats(*states), CONFIG)
    phase, step, _ = states[culprit]
    assert line is not None
    assert line.startswith(f"rank {culprit} (host{culprit}, pid {100 + culprit})")
    assert f"in {phase} at step {step}" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "states",
    [
        [("evaluate", 3, 609), ("evaluate", 3, 601)],
        [("save", 3, 601), ("save", 3, 601)],
        # A step is dispatched before the one before it is done: the culprit may be one ahead.
        [("step", 7, 61), ("step", 8, 61)],
    ],
)
def test_the_rank_that_waits_for_nobody_is_named(states):
    """Catches: naming by the step or the time alone, where all are in the same phase."""
    found = beats(*states)
    found[0] = dataclasses.replace(found[0], waits=True)
    line = stuck(found, CONFIG)
    assert line is not None
    assert line.startswith("rank 1 (host1")


@pytest.mark.parametrize(
    "states",
    [
        [("step", 8, 59), ("data", 7, 59)],
        [("compile", 1, 599), ("evaluate", 5, 599), ("save", 5, 599), ("start", 0, 599)],
        [("end", 9, 10_000)],
    ],
)
def test_slow_is_not_stuck(states):
    """Catches: one limit for compiling and for a step."""
    assert stuck(beats(*states), CONFIG) is None


def test_limits_are_positive():
    with pytest.raises(RequestError, match="stuck=0"):
        HeartbeatConfig(stuck=0)
