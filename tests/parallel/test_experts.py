"""A mixture of experts on one device and over meshes: the same losses, and tokens that travel to their experts."""

import numpy as np
import pytest

from parallel.faked import printed


def compare(*layouts: str):
    """What `compare_experts.py` prints."""
    return printed("parallel.compare_experts", *layouts, devices=4)


def assert_same(found, expected):
    # The order of float32 additions differs: 3e-7 seen.
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=2e-6)
    np.testing.assert_allclose(found["router"], expected["router"], atol=1e-5)


def test_experts_on_devices_of_their_own():
    """Catches: places counted over the rows of one device, a balance over all rows, a gradient of an expert that is
    added once per device, kernels that are gathered instead of tokens that travel."""
    found = compare("one", "data 2 expert 2")
    assert_same(found["data 2 expert 2"], found["one"])
    assert "all-to-all" in found["data 2 expert 2"]["collectives"]


@pytest.mark.slow
def test_other_meshes_and_replicas():
    layouts = ("expert 4", "fsdp 2 expert 2", "expert 2 tensor 2", "expert 2 sequence 2", "pmap 4")
    found = compare("one", *layouts)
    for name in layouts:
        assert_same(found[name], found["one"])
        assert ("all-to-all" in found[name].get("collectives", ())) == ("expert" in name), name


@pytest.mark.slow
def test_without_capacity_each_device_sorts_its_own_tokens():
    """Catches: kernels of which a device uses its part only, and tokens that are sorted over all devices."""
    layouts = ("dropless on data 2 fsdp 2", "dropless on sequence 2")
    found = compare("dropless on one", *layouts)
    for name in layouts:
        assert_same(found[name], found["dropless on one"])
        assert "all-to-all" not in found[name]["collectives"]
