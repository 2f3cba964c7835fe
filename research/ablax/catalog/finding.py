"""What produced a number, or has a hash: a search through every evaluation, checkpoint and fingerprint of the index."""

import math
import re
from typing import Any

from ablax.catalog.index import Index
from ablax.config import RequestError

SHORTEST_HASH = 6


def find(index: Index, text: str) -> list[dict[str, Any]]:
    """Everything that a number or a hash may stand for.

    Args:
      text: a number as it is printed, which stands for all that round to it; or the beginning of a hash: of code, a
        commit, a configuration (fingerprint), data, a checkpoint or its parameters.

    Returns:
      One dict per find, with `path`, `what` and `value`, best metrics first by their path.

    Raises:
      RequestError: if it is neither.
    """
    found: list[dict[str, Any]] = []
    plain = text.replace(",", "").strip().lower()
    number = re.fullmatch(r"[+-]?\d+(?:\.(\d*))?(?:e([+-]?\d+))?", plain)
    half = float(f"0.5e{int(number[2] or 0) - len(number[1] or '')}") if number else math.inf
    if math.isfinite(half):  # else it can only be a hash, as 1e4567 may be
        value = float(plain)
        rows = index.select(
            "select path, split, step, name, value from metrics where value between ? and ? order by path, step",
            (value - half * 1.0001, value + half * 1.0001),
        )
        found += [
            {
                "path": row["path"],
                "what": f"{row['name']}, {row['split']}"
                + f", step {row['step']}" * bool(row["step"]),
                "value": row["value"],
            }
            for row in rows
        ]
    is_hash = re.fullmatch(rf"[0-9a-f]{{{SHORTEST_HASH},}}", plain)
    if is_hash:
        found += index.select(
            "select path, what, value from hashes where value >= ? and value < ? order by path",
            (plain, plain + "g"),
        )
    if not (number or is_hash):
        raise RequestError(
            f"--find={text} is neither a number nor {SHORTEST_HASH} or more digits of a hash"
        )
    return found
