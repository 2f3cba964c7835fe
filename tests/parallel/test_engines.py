"""The same step on one device, on a mesh of eight and replicated by pmap."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("compare_engines.py")
ROOT = SCRIPT.parent.parent.parent


@pytest.mark.parametrize("family", ["decoder", "encoder", "lstm"])
def test_mesh_is_pmap_is_one_device(family):
    """Catches a mean over devices instead of a sum of totals over a sum of counts, a gradient that is not added, a
    carry that is not split by rows, and one that a resumed run finds on one device."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "research"), "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), family],
        capture_output=True,
        text=True,
        env=environment,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    for name in ("mesh", "pmap", "accumulated"):
        # Only the order of float32 additions differs: losses were seen to differ by 3e-7, 3 units in the last place.
        np.testing.assert_allclose(results[name], results["one"], rtol=2e-6, err_msg=name)
        # Parameters by 3e-6, and a bias of keys by 7e-6: it has no true gradient, and Adam divides its rounding error
        # by 1e-8. A hundredth of one step (rate 1e-2) leaves room for other processors, not for another gradient.
        assert results[f"{name}_parameters"] < 1e-4, name
    if (
        family == "decoder"
    ):  # a mesh draws the masks that one device draws; pmap draws a replica's own
        np.testing.assert_allclose(results["dropout_mesh"], results["dropout_one"], rtol=2e-6)
        assert results["dropout_one"] != results["one"]
