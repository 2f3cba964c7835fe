"""What is left of a finished run's checkpoints: the parameters that are evaluated, with a manifest of their own.

`thinning.py` makes them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablax.config import RequestError
from ablax.run import RunFolder

EVALUATED = "evaluated"
"""The one branch of a thinned checkpoint's tree."""
BESIDE = ".thinned"
"""The folder, among the checkpoints, in which thinned ones are written."""


def evaluated_only(params: Any) -> dict[str, Any]:
    """The tree of a thinned checkpoint."""
    return {EVALUATED: params}


def evaluated_params(program: Any, state: Any) -> Any:
    """The parameters that are scored, of a whole state or of what is left of one."""
    return state[EVALUATED] if isinstance(state, dict) else program.evaluation_params(state)


def is_thinned(leaves: Mapping[str, Any]) -> bool:
    """Whether these paths of arrays are those of a thinned checkpoint."""
    return any(path.startswith(f"{EVALUATED}/") for path in leaves)


def evaluated_branch(leaves: Mapping[str, Any]) -> str:
    """Where among these paths of arrays the parameters lie that are evaluated: averaged ones if there are any."""
    branches = (f"{EVALUATED}/", "ema/")
    return next((b for b in branches if any(path.startswith(b) for path in leaves)), "params/")


def has_only_parameters(step_folder: Path) -> bool:
    """Whether a checkpoint is thinned, by its manifest; a damaged one is not."""
    try:
        return is_thinned(json.loads((step_folder / "manifest" / "metadata").read_text())["leaves"])
    except (OSError, ValueError, LookupError, TypeError):
        return False


def newest(folder: RunFolder) -> Path | None:
    """The newest checkpoint of a run."""
    steps = [path for path in folder.checkpoints.glob("*") if path.name.isdigit()]
    return max(steps, key=lambda path: int(path.name), default=None)


def unthinned(folder: RunFolder) -> bool:
    """Whether a run has whole states among its checkpoints, or what a kill between two names left."""
    if (folder.checkpoints / BESIDE).exists():
        return True
    steps = [path for path in folder.checkpoints.glob("*") if path.name[:1].isdigit()]
    return any(not has_only_parameters(path) for path in steps)


def check_whole_state(folder: RunFolder) -> None:
    """Refuses to go on with a run whose states are gone.

    Raises:
      RequestError: if its newest checkpoint is thinned, or it finished and its checkpoints were pruned.
    """
    status = folder.status()
    remedy = f"start a new run from them with --config.init.run={folder.path}, or over with --fresh"
    last = newest(folder)
    if last is not None and has_only_parameters(last):
        raise RequestError(
            f"{folder.path} kept only its parameters when it finished (checkpoint.at_end=parameters), so its optimizer "
            f"cannot go on; {remedy}"
        )
    if last is None and status.get("status") == "finished" and status.get("pruned"):
        raise RequestError(
            f"{folder.path} finished and its checkpoints were pruned on {status['pruned']['time']}, so it cannot go "
            "on; start over with --fresh"
        )
