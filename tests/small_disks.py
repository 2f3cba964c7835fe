"""File systems that fail for real, for the tests that need one; skipped where they cannot be mounted."""

import contextlib
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest


def run(*command: Any) -> str:
    """Runs a command of the system; the test is skipped where it may not."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{command[0]} needs root and a kernel that has it: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def mounted(folder: pathlib.Path, *what: Any) -> Iterator[pathlib.Path]:
    folder.mkdir()
    run("mount", *what, folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: pathlib.Path):
    """A file system of 3.4 MiB."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=3500k", "tmpfs") as folder:
        yield folder
