"""Asynchronous successive halving against what Li et al. 2020 say, and that no order of reports changes its end."""

import math

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.sweeps.halving import SELECTION, Halving, halve, record, rung_values
from ablax.sweeps.look_log import log_looks, read_looks

ARMS = ["base", *"abcdefghi"]
RULE = Halving((10, 30))


def decisions(values, **more):
    return {
        arm: (one.rung, one.decision)
        for arm, one in halve(RULE, values, "base", ARMS, **more).items()
    }


def test_the_best_go_on_without_waiting_and_who_cannot_come_back_stops():
    """Of nine rivals three go on. Catches: a floor over all arms instead of those that reported; a baseline that takes
    a place; lower taken for worse."""
    values = {"base": {10: 0.0}, "a": {10: 3.0}, "b": {10: 1.0}}
    assert decisions(values) == {"base": (10, "promote"), "a": (10, "wait"), "b": (10, "wait")}
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
    found = halve(
        few, {"a": {10: 2.0}, "b": {10: 1.0}, "c": {10: math.nan}}, "base", ["base", *"abc"]
    )
    assert [found[arm].decision for arm in "abc"] == ["stop", "promote", "stop"]
    found = halve(few, {"b": {10: 1.0}}, "base", ["base", *"abc"], failed=("a", "c"))
    assert found["b"].decision == "promote"  # who failed is not waited for
    found = halve(few, {"b": {10: math.inf}}, "base", ["base", "b"])
    assert found["b"].decision == "stop"


def test_a_second_rung_counts_those_who_can_come_to_it():
    values = {arm: {10: float(i)} for i, arm in enumerate("abcdefghi")}
    for arm, value in zip("abc", (5.0, 4.0, 6.0), strict=True):
        values[arm][30] = value
    found = decisions(values)
    assert [found[arm] for arm in "abc"] == [(30, "stop"), (30, "promote"), (30, "stop")]
    assert {found[arm] for arm in "defghi"} == {(10, "stop")}


@pytest.mark.parametrize("seed", range(5))
def test_no_order_of_reports_loses_the_best_or_waits_for_ever(seed):
    """Arms report one after another; who is promoted stays so. Catches: an arm that waits when all have reported."""
    rng = np.random.default_rng(seed)
    final = dict(zip("abcdefghi", rng.standard_normal(9).tolist(), strict=True))
    values, promoted = {}, {}
    for arm in rng.permutation(list(final)):
        values[str(arm)] = {10: final[str(arm)]}
        found = halve(RULE, values, "base", ARMS, promoted)
        promoted |= {name: 10 for name, one in found.items() if one.decision == "promote"}
        assert not {name for name in promoted if found[name].decision == "stop"}
    assert {one.decision for one in found.values()} == {"promote", "stop"}
    assert set(sorted(final, key=final.__getitem__)[:3]) <= promoted.keys()


def test_kept_arms_go_on_and_take_no_place():
    rule = Halving((10,), factor=2, keep=("a",))
    values = {"a": {10: 9.0}, "b": {10: 1.0}, "c": {10: 2.0}}
    found = halve(rule, values, "base", ["base", *"abc"])
    assert [found[arm].decision for arm in "abc"] == ["promote", "promote", "stop"]


def test_a_rung_is_reached_when_every_seed_is_there():
    curves = {"a": {0: {10: 1.0, 30: 2.0}, 1: {10: 3.0}}, "b": {0: {10: 1.0}}}
    assert rung_values(RULE, curves, (0, 1)) == {"a": {10: 2.0}, "b": {}}


def test_decisions_are_logged_once_and_called_a_selection(tmp_path):
    found = halve(RULE, {"a": {10: 1.0}}, "base", ARMS)
    rows = [record(one) for one in found.values()]
    assert len(log_looks(tmp_path, (), "now", rows)) == 1
    assert log_looks(tmp_path, (), "later", rows) == []
    assert read_looks(tmp_path)[0]["kind"] == "halving"
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
