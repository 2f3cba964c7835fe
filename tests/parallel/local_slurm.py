"""A real SLURM of one node on this machine, as `scripts/cluster/local_slurm` starts it."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CLUSTER = Path(__file__).resolve().parents[2] / "scripts" / "cluster"


@contextlib.contextmanager
def local_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which srun and sbatch find it; the test skips where it cannot start."""
    if missing := [c for c in ("munged", "slurmctld", "slurmd", "srun") if not shutil.which(c)]:
        pytest.skip(f"{missing[0]} is not installed (Debian: slurm-wlm, munge)")
    if os.geteuid() != 0:
        pytest.skip("slurmd needs root")
    done = subprocess.run(
        [CLUSTER / "local_slurm", "start", folder], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        pytest.skip(f"SLURM does not start here: {done.stderr.strip().splitlines()[-1]}")
    try:
        yield {
            **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "JAX_PLATFORMS": "cpu",
            "ABLAX_MALLOC": "0",
        }
    finally:
        subprocess.run([CLUSTER / "local_slurm", "stop", folder], timeout=60, check=True)


def call(slurm: dict[str, str], *command: str | Path, seconds: float = 30) -> str:
    """What a command prints in that environment."""
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(slurm: dict[str, str], number: str) -> set[str]:
    """What SLURM knows of a job, as NAME=VALUE."""
    return set(call(slurm, "scontrol", "show", "job", number).split())
