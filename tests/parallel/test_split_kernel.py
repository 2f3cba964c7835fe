"""A kernel that XLA cannot split gets each device's own rows and heads."""

import os
import pathlib
import subprocess
import sys

import pytest

from compiling import flags

HERE = pathlib.Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["2 1 1 2 2", "2 1 1 1 4"], ids=["split", "shared"])
def test_splash_over_a_mesh_equals_the_reference(arguments):
    """Catches: query heads split where the key head that they share is whole; positions split under a causal mask."""
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, str(HERE / "split_kernel.py"), *arguments.split()],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags(4), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    # float32 sums of values near 1 in another order.
    assert float(done.stdout) < 5e-5
