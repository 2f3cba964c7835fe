"""Asynchronous successive halving against what Li et al. 2020 say, and that no order of reports changes its end."""

import math

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.sweeps.halving import SELECTION, Halving, decided, entry, halve, promoted_in
from ablax.sweeps.look_log import log_looks, read_looks

TRIALS = list("abcdefghi")
RULE = Halving((10, 30))


def decisions(values, **more):
    return {
        trial: (one.rung, one.decision)
        for trial, one in halve(RULE, values, TRIALS, **more).items()
    }


def test_the_best_go_on_without_waiting_and_who_cannot_come_back_stops():
    """Of nine three go on. Catches: a floor over all trials instead of those that reported; lower taken for worse."""
    values = {"a": {10: 3.0}, "b": {10: 1.0}}
    assert decisions(values) == {"a": (10, "wait"), "b": (10, "wait")}
    values["c"] = {10: 2.0}
    assert decisions(values)["b"] == (10, "promote")
    assert decisions(values)["a"] == (10, "wait")
    values["d"] = {10: 0.5}
    assert decisions(values)["a"] == (10, "stop")  # three are better
    assert decisions(values)["d"] == (10, "promote")
    assert decisions(values)["b"] == (10, "wait")
    assert decisions(values, promoted={"b": 10})["b"] == (10, "promote")
    assert decisions(values, higher=True)["a"] == (10, "promote")


def test_when_all_are_there_at_least_one_goes_on():
    few = Halving((10,), factor=4)
    found = halve(few, {"a": {10: 2.0}, "b": {10: 1.0}, "c": {10: math.nan}}, "abc")
    assert [found[trial].decision for trial in "abc"] == ["stop", "promote", "stop"]
    found = halve(few, {"b": {10: 1.0}}, "abc", failed=("a", "c"))
    assert found["b"].decision == "promote"  # who failed is not waited for
    assert halve(few, {"b": {10: math.inf}}, "b")["b"].decision == "stop"


def test_when_who_went_on_fails_the_next_does():
    """Catches: a failed trial that keeps its place, so that none of the arm's trials comes to its end."""
    values = {"a": {10: 1.0}, "b": {10: 2.0}, "c": {10: 3.0}}
    assert halve(RULE, values, "abc")["b"].decision == "stop"
    found = halve(RULE, values, "abc", promoted={"a": 10}, failed=("a",))
    assert {trial: one.decision for trial, one in found.items()} == {"b": "promote", "c": "stop"}


def test_a_second_rung_counts_those_who_can_come_to_it():
    values = {trial: {10: float(i)} for i, trial in enumerate(TRIALS)}
    for trial, value in zip("abc", (5.0, 4.0, 6.0), strict=True):
        values[trial][30] = value
    found = decisions(values)
    assert [found[trial] for trial in "abc"] == [(30, "stop"), (30, "promote"), (30, "stop")]
    assert {found[trial] for trial in "defghi"} == {(10, "stop")}


@pytest.mark.parametrize("seed", range(5))
def test_no_order_of_reports_loses_the_best_or_waits_for_ever(seed):
    """Trials report one after another; who is promoted stays so. Catches: one that waits when all have reported."""
    rng = np.random.default_rng(seed)
    final = dict(zip(TRIALS, rng.standard_normal(9).tolist(), strict=True))
    values, promoted = {}, {}
    for trial in rng.permutation(list(final)):
        values[str(trial)] = {10: final[str(trial)]}
        found = halve(RULE, values, TRIALS, promoted)
        promoted |= {name: 10 for name, one in found.items() if one.decision == "promote"}
        assert not {name for name in promoted if found[name].decision == "stop"}
    assert {one.decision for one in found.values()} == {"promote", "stop"}
    assert set(sorted(final, key=final.__getitem__)[:3]) <= promoted.keys()


def test_decisions_are_logged_once_and_called_a_selection(tmp_path):
    found = halve(RULE, {"a": {10: 1.0}}, "a")
    rows = [entry(one) for one in found.values()]
    assert len(log_looks(tmp_path, (), "now", rows)) == 1
    assert log_looks(tmp_path, (), "later", rows) == []
    log = read_looks(tmp_path)
    assert decided(log) == {("a", 10): "promote"}
    assert promoted_in(log) == {"a": 10}
    assert "selection and not a test" in SELECTION


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Halving(()), "growing numbers"),
        (lambda: Halving((30, 10)), "growing numbers"),
        (lambda: Halving((10,), factor=1), "factor=1"),
    ],
)
def test_rungs_that_make_no_sense_are_refused(make, message):
    with pytest.raises(RequestError, match=message):
        make()
