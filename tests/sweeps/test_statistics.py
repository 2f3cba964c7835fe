"""Paired statistics against closed forms, and what they refuse."""

import gc
import math

import numpy as np
import pytest
from scipy import stats

from ablax.sweeps.statistics import compare, diverged, paired, seeds_needed, summary


def test_interval_is_the_textbook_paired_t():
    """Catches: ddof=0, a normal quantile, or an unpaired variance."""
    baseline = {0: 2.0, 1: 2.4, 2: 2.2}
    arm = {0: 1.9, 1: 2.2, 2: 2.15}
    found = paired(baseline, arm)
    differences = np.array([-0.1, -0.2, -0.05])
    half = stats.t.ppf(0.975, 2) * differences.std(ddof=1) / math.sqrt(3)
    assert found.n == 3
    assert found.difference == pytest.approx(differences.mean())
    assert found.sd == pytest.approx(differences.std(ddof=1))
    assert found.interval == pytest.approx((differences.mean() - half, differences.mean() + half))
    assert found.why is None


def test_pairs_go_by_seed_not_by_order():
    """Catches: zipping values in insertion order."""
    found = paired({0: 1.0, 1: 5.0}, {1: 5.5, 0: 1.2})
    assert found.difference == pytest.approx(0.35)
    assert found.sd == pytest.approx(np.std([0.2, 0.5], ddof=1))


def test_one_seed_prints_no_interval_and_says_why():
    found = paired({0: 1.0}, {0: 1.5})
    assert found.difference == 0.5
    assert found.interval is None
    assert "one seed" in str(found.why)


@pytest.mark.parametrize(
    ("baseline", "arm", "message"),
    [
        ({0: 1.0, 1: 1.0}, {0: 1.0}, "seeds 1 only in the baseline"),
        ({0: 1.0}, {0: 1.0, 3: 1.0}, "seeds 3 only in the arm"),
        ({0: 1.0, 1: 2.0}, {0: 1.0, 1: math.nan}, "not finite at seeds 1"),
    ],
)
def test_unpaired_or_broken_comparisons_are_refused(baseline, arm, message):
    """Catches: comparing the seeds that happen to be on both sides."""
    found = paired(baseline, arm)
    assert found.difference is None
    assert found.interval is None
    assert message in str(found.why)


@pytest.mark.parametrize(
    ("one", "other", "n"), [(1.0, 2.0, 3), (3.3704, 1.8725, 3), (1.0745, 3.3347, 6)]
)
def test_differences_that_never_vary_get_no_interval(one, other, n):
    """Catches: an interval of width zero, or of a rounding error, which would look certain."""
    found = paired(dict.fromkeys(range(n), one), dict.fromkeys(range(n), other))
    assert found.difference == pytest.approx(other - one)
    assert found.interval is found.p is None
    assert "same for every seed" in str(found.why)


def test_p_and_effect_are_the_textbook_ones():
    """Catches: a one-sided p, an effect in standard deviations of the arms, small samples not corrected for."""
    differences = np.array([-0.1, -0.2, -0.05, -0.25])
    found = paired(dict.fromkeys(range(4), 2.0), dict(enumerate(2.0 + differences)))
    t = differences.mean() / differences.std(ddof=1) * 2
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 3))
    # Hedges 1981: the exact correction is Gamma(3/2) / (Gamma(1) sqrt(3/2)) at 3 degrees of freedom.
    exact = math.gamma(1.5) / math.sqrt(1.5)
    # The usual correction 1 - 3 / (4 n - 5) is 0.5 % larger than the exact one there.
    assert found.effect == pytest.approx(t / 2 * exact, rel=0.006)
    assert paired({0: 1.0, 1: 2.0, 2: 4.0}, {0: 2.0, 1: 4.0, 2: 8.0}).correlation == pytest.approx(
        1
    )

    assert paired(dict.fromkeys(range(6), 2.3), dict(enumerate(np.arange(6.0)))).correlation is None
    assert paired({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.6}).effect is None  # of two pairs there is none


def test_holm_counts_every_arm_of_the_plan():
    """Catches: Bonferroni; a family that shrinks when an arm fails, so that the others become significant."""
    rng = np.random.default_rng(1)
    values = {
        arm: dict(enumerate(rng.normal(shift, 0.1, 5)))
        for arm, shift in (("base", 0), ("far", 1), ("near", 0.1), ("none", 0))
    }
    found = compare(values, "base")
    order = sorted(found, key=lambda arm: found[arm].p)
    expected, running = {}, 0.0
    for rank, arm in enumerate(order):
        running = max(running, min(1.0, (3 - rank) * found[arm].p))
        expected[arm] = running
    assert {arm: one.p_holm for arm, one in found.items()} == pytest.approx(expected)
    values["none"][2] = math.nan
    assert compare(values, "base")["far"].p_holm == pytest.approx(found["far"].p_holm)
    del values["none"]
    arms = ["base", "far", "near", "none"]
    assert compare(values, "base", arms)["far"].p_holm == pytest.approx(found["far"].p_holm)


def test_seeds_needed_have_the_power_and_no_fewer():
    """Against simulation; 2 standard deviations of the share over 4,000 sweeps are 1.3 %."""
    count = seeds_needed(0.1, sd=0.09)
    rng = np.random.default_rng(0)

    def power(n):
        p = stats.ttest_1samp(rng.normal(0.1, 0.09, (4000, n)), 0.0, axis=1).pvalue
        return (p < 0.05).mean()

    assert power(count) > 0.787
    assert power(count - 1) < 0.813
    found = paired(dict.fromkeys(range(count), 0.0), dict(enumerate(rng.normal(size=count))))
    assert found.detectable / found.sd == pytest.approx(0.1 / 0.09, rel=0.1)  # pairs are whole


def test_a_seed_that_diverged_is_named_and_its_arm_refused():
    """Catches: an interval around a mean of runs that worked and runs that did not; an arm that does not depend on the
    seed, which makes any distance a large one."""
    values = {
        "base": {0: 2.00, 1: 2.02, 2: 2.01},
        "bad": {0: 1.98, 1: 9.5, 2: 2.00},
        "good": {0: 1.91, 1: 1.93, 2: 1.90},
        "ngram": dict.fromkeys(range(3), 2.5),
    }
    found = compare(values, "base")
    assert found["bad"].interval is None
    assert "bad: seed 1 diverged" in str(found["bad"].why)
    assert found["good"].interval is not None
    assert found["ngram"].interval is not None
    values["base"][2] = 11.0
    assert all("base: seed 2 diverged" in str(one.why) for one in compare(values, "base").values())


NOISES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: rng.standard_t(5, shape),
    "Laplace": lambda rng, shape: rng.laplace(size=shape),
    "unequal": lambda rng, shape: rng.standard_normal(shape) * [[1], [0.3], [3]],
}
"""Noise of arms for which the report's intervals and p are said to be honest."""


@pytest.fixture
def swift(monkeypatch):
    """statsmodels collects garbage in every adjustment, which takes a tenth of a second beside JAX."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def simulated(rng, noise, seeds, effect=0.0):
    """The comparisons of one sweep of three arms that share a part of their noise over seeds."""
    values = 100 + 0.5 * rng.standard_normal(seeds) + NOISES[noise](rng, (3, seeds))
    values[1:] += effect
    return compare({f"arm {i}": dict(enumerate(row)) for i, row in enumerate(values)}, "arm 0")


def calibrated(noise, seeds, sweeps):
    """The share of sweeps without an effect that claim one, and of intervals that hold a true effect."""
    rng = np.random.default_rng(seeds)
    alarms = sum(
        any(one.p_holm is not None and one.p_holm <= 0.05 for one in found.values())
        for found in (simulated(rng, noise, seeds) for _ in range(sweeps))
    )
    found = [simulated(rng, noise, seeds, effect=0.7) for _ in range(sweeps)]
    intervals = [one.interval for sweep in found for one in sweep.values()]
    assert None not in intervals
    held = sum(low <= 0.7 <= high for low, high in intervals)
    return alarms / sweeps, held / len(intervals)


def test_claims_are_as_rare_and_intervals_as_wide_as_they_say(swift):
    """Three standard deviations of a share of 5 % over 200 sweeps, and over 400 intervals of which pairs share a
    baseline, are 4.6 %."""
    alarms, held = calibrated("normal", 3, 200)
    assert alarms <= 0.05 + 0.046
    assert held >= 0.95 - 0.046


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("noise", NOISES)
def test_calibration(noise, seeds, swift):
    """Family-wise false claims at most 5 % and coverage of 93 to 97 %; over 2,000 sweeps three standard deviations of a
    share of 5 % are 1.5 %."""
    alarms, held = calibrated(noise, seeds, 2000)
    print(
        f"{noise}, {seeds} seeds: {alarms:.3f} of sweeps claim an effect, {held:.3f} of intervals hold it"
    )
    assert alarms <= 0.05 + 0.015
    assert 0.93 <= held <= 0.97


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_seeds_that_diverge_are_noticed(seeds):
    """In at least nine of ten sweeps that have one; a fifth of all seeds do."""
    rng = np.random.default_rng(seeds)
    noticed = []
    for _ in range(200):
        values = 2 + 0.01 * (rng.standard_normal(seeds) + rng.standard_normal((3, seeds)))
        bad = rng.random((3, seeds)) < 0.2
        values += bad * rng.uniform(1, 8, (3, seeds))
        if (bad.any(axis=1) & ~bad.all(axis=1)).any():
            noticed.append(
                bool(diverged({str(i): dict(enumerate(v)) for i, v in enumerate(values)}))
            )
    assert len(noticed) > 50
    assert np.mean(noticed) >= 0.9


@pytest.mark.parametrize("deviations", [(0.01, 0.01), (0, 0.01), (0.002, 0.12)])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_seeds_that_vary_as_seeds_do_have_not_diverged(seeds, deviations):
    """Also two arms of which one varies sixty times as much. Catches: a smallest distance taken for the usual one."""
    rng = np.random.default_rng(seeds)
    values = 2 + np.array(deviations)[:, None] * rng.standard_normal((400, 2, seeds))
    refused = [
        bool(diverged({"a": dict(enumerate(a)), "b": dict(enumerate(b))})) for a, b in values
    ]
    assert np.mean(refused) <= 0.005


def test_skewed_differences_are_noticed():
    """With 20 seeds, of which the report does not say that they are few. Catches: a warning for everybody."""
    rng = np.random.default_rng(0)

    def warned(noise):
        pairs = [
            paired(dict.fromkeys(range(20), 0.0), dict(enumerate(noise()))) for _ in range(200)
        ]
        return np.mean([one.warning is not None for one in pairs])

    assert warned(lambda: np.exp(1.2 * rng.standard_normal(20))) >= 0.9
    assert warned(lambda: rng.standard_normal(20)) <= 0.05 + 0.046  # three standard deviations


def test_summary():
    found = summary({0: 1.0, 1: 3.0})
    assert (found.n, found.mean, found.sd) == (2, 2.0, pytest.approx(math.sqrt(2)))
    assert summary({0: 1.0}).sd is None
