"""Members over faked devices."""

import numpy as np

from parallel.faked import printed


def test_members_lie_side_by_side_on_devices():
    """Three on two devices, one of which ends before the others. Catches: a place that no member has and that counts, a
    member on the other device that takes the first one's state, a frozen member that goes on."""
    one, two = (found := printed("parallel.compare_members", devices=2))["1"], found["2"]
    assert (one["places"], two["places"]) == (3, 4)
    assert one["steps"] == two["steps"] == [3, 3, 2]
    # Only the order of float32 additions differs.
    for a, b in zip(one["losses"], two["losses"], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)
    assert len(set(one["losses"][1])) == 3
