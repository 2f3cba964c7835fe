"""Bytes on disk of a run: checkpoints, evaluations, ledger, everything."""

import contextlib
import os
from pathlib import Path

PARTS = ("checkpoints", "evals", "ledger")


def bytes_of(path: Path) -> int:
    """What the files in a folder occupy; links are not followed, and what disappears meanwhile counts nothing."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    total += bytes_of(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def usage(folder: Path) -> dict[str, int]:
    """`checkpoints`, `evals`, `ledger` and `total` of a run."""
    return {**{part: bytes_of(folder / part) for part in PARTS}, "total": bytes_of(folder)}
