"""Learning curves of many arms: which ones have a name."""

import pytest

from ablax.history import Curve
from ablax.sweeps.curves import NAMED, Panel, named_of


@pytest.mark.parametrize(
    ("metric", "best"), [("bits_per_byte", range(9)), ("accuracy", range(21, 30))]
)
def test_the_best_arms_and_the_baseline_have_names(metric, best):
    """Catches: a legend of thirty arms that leaves no room for the curves; the worst named; no baseline."""
    ends = {
        f"arm {i}": [Curve(metric, "validation", (10, 20), (99.0 - i, float(i)))] for i in range(30)
    }
    named = named_of(Panel(metric, False, ends), "arm 15")
    assert named == {"arm 15", *(f"arm {i}" for i in best)}
    assert len(named) == NAMED
    few = dict(list(ends.items())[:NAMED])
    assert named_of(Panel(metric, False, few), "arm 15") == set(few)
