"""Factorial plans: recognised from what arms set, effects that were put in, aliases, calibration."""

import gc

import numpy as np
import pytest

from ablax.sweeps.effects import effects, factors_of
from ablax.sweeps.plan import factorial, grid, leave_one_out


def toggles(names):
    return {name: ({f"model.{name}": True}, {f"model.{name}": False}) for name in names}


def arms_of(plan):
    return {own.pop("arm", str(i)): own for i, own in enumerate(map(dict, plan))}


@pytest.fixture
def swift(monkeypatch):
    """statsmodels collects garbage in every adjustment, which takes a tenth of a second beside JAX."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def test_factorial_plans_are_recognised():
    """Catches: leaving one out taken for a factorial, a size that was solved for taken for a factor."""
    arms = arms_of(factorial(toggles("abc")))
    for number, own in enumerate(arms.values()):
        own["model.F"] = number
    found = factors_of(arms, "none")
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == {arm: 1 if "a" in arm.split("+") else -1 for arm in arms}
    assert factors_of(arms_of(leave_one_out(toggles("abc"))), "full") is None
    assert factors_of(arms_of(grid({"x": [1, 2, 3], "y": [1, 2]})), "0") is None
    assert list(factors_of(arms_of(grid({"x": [1, 2], "y": [1, 2]})), "0")) == ["x", "y"]
    del arms["a+b"]
    assert factors_of(arms, "none") is None


def simulated(rng, names="abc", seeds=4, scale=0.1, **true):
    arms = arms_of(factorial(toggles(names)))
    factors = factors_of(arms, "none")
    blocks = rng.standard_normal(seeds)
    values = {}
    for index, arm in enumerate(arms):
        level = sum(
            size / 2 * np.prod([factors[name][arm] for name in term]) for term, size in true.items()
        )
        noise = scale * (1 + 2 * (index % 2)) * rng.standard_normal(seeds)
        values[arm] = dict(enumerate(level + blocks + noise))
    return effects(values, factors)


def test_effects_are_those_that_were_put_in(swift):
    """Catches: an effect of half its size, seeds that are noise, a family of tests that is not adjusted."""
    found = {e.factors: e for e in simulated(np.random.default_rng(0), scale=0.01, a=1.0, bc=-0.5)}
    assert len(found) == 6
    assert found["a",].effect == pytest.approx(1.0, abs=0.02)
    assert found["b", "c"].effect == pytest.approx(-0.5, abs=0.02)
    low, high = found["a",].interval
    assert low < 1.0 < high < low + 0.1
    assert all(e.p_holm >= e.p for e in found.values())
    assert found["b",].p_holm > 0.05 > found["b", "c"].p_holm


def test_a_fraction_says_what_it_confounds():
    """Catches: an interaction that is shown as if it were known, a sign that is wrong."""
    arms = arms_of(factorial(toggles("abcd"), fraction=1 / 2))
    factors = factors_of(arms, "none")
    level = {arm: factors["c"][arm] * factors["d"][arm] / 2 for arm in arms}
    values = {arm: {0: level[arm], 1: level[arm] + 1} for arm in arms}
    found = {e.factors: e for e in effects(values, factors)}
    assert len(found) == 7
    assert found["a", "b"].aliases == ("c x d",)
    assert found["a",].aliases == ("b x c x d",)
    assert found["a", "b"].effect == pytest.approx(1)
    assert found["a",].interval is None  # no noise at all
    half = effects(
        {a: dict.fromkeys(range(1), 1.0) for a in arms_of(factorial(toggles("abc"), 0.5))},
        factors_of(arms_of(factorial(toggles("abc"), 0.5)), "none"),
    )
    assert [e.aliases for e in half] == [("-b x c",), ("-a x c",), ("-a x b",)]
    assert all(e.interval is None for e in half)


def test_effects_that_are_not_there_are_seldom_claimed(swift):
    """Arms of unequal variance. Three standard deviations of a share of 5 % over 300 sweeps are 3.8 %."""
    rng = np.random.default_rng(1)
    claimed = [any(e.p_holm <= 0.05 for e in simulated(rng, seeds=3)) for _ in range(300)]
    assert np.mean(claimed) <= 0.05 + 0.038
