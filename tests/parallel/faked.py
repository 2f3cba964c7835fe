"""Programs in processes of their own, which see as many devices as a test wants."""

import json
import os
import subprocess
import sys
from typing import Any

from compiling import flags


def printed(
    module: str,
    *arguments: str,
    devices: int = 1,
    timeout: float = 600,
    **environment: str,
) -> Any:
    """The JSON that a module prints (`parallel.NAME` is a script of this folder); it must succeed.

    Args:
      devices: faked ones.
      timeout: in seconds.
      environment: what else the process gets, over what the other arguments say.
    """
    given = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XLA_FLAGS": flags(devices),
        # Threads of XLA's pool: a collective blocks one per faked device, and two may overlap.
        "NPROC": str(4 * devices),
    }
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **given, **environment},
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Involuntary full rematerialization" not in done.stderr
    return json.loads(done.stdout)
