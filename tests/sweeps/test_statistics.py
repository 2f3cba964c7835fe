"""Paired statistics against closed forms, and what they refuse."""

import math

import numpy as np
import pytest
from scipy import stats

from ablax.sweeps.statistics import paired, summary


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


def test_differences_that_never_vary_get_no_interval():
    """Catches: an interval of width zero, which would look certain."""
    found = paired({0: 1.0, 1: 1.0, 2: 1.0}, {0: 2.0, 1: 2.0, 2: 2.0})
    assert found.difference == 1.0
    assert found.interval is None
    assert "same for every seed" in str(found.why)


def test_interval_covers_the_truth_as_often_as_it_says():
    """2,000 sweeps of 3 seeds without an effect; 95 % of intervals hold 0 (sd of the share 0.5 %, so 3 sd allowed)."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        shared, noise = rng.standard_normal(3), 0.3 * rng.standard_normal((2, 3))
        found = paired(dict(enumerate(shared + noise[0])), dict(enumerate(shared + noise[1])))
        assert found.interval is not None
        held += found.interval[0] <= 0 <= found.interval[1]
    assert 0.935 <= held / 2000 <= 0.965


def test_summary():
    found = summary({0: 1.0, 1: 3.0})
    assert (found.n, found.mean, found.sd) == (2, 2.0, pytest.approx(math.sqrt(2)))
    assert summary({0: 1.0}).sd is None
