"""What run folders say: metrics as curves, step by split, and settings by their dotted paths."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablax.config import RequestError
from ablax.run import RunFolder

# Where a run's loss is found, best first: what its objective reports.
LOSSES = ("nats_per_token", "loss", "masked_nats_per_token")
UNITS = {
    "bits_per_byte": "bits per byte",
    "nats_per_token": "nats per token",
    "masked_nats_per_token": "nats per masked token",
    "pseudo_bits_per_byte": "pseudo-log-likelihood bits per byte",
    "loss": "loss, nats per token",
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric over steps.

    Attributes:
      steps: rising, each once.
      values: one for each step.
    """

    metric: str
    split: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def unit(metric: str) -> str:
    """A metric with its unit, for an axis."""
    return UNITS.get(metric, metric.replace("_", " "))


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of a metric is the better one."""
    return "accuracy" in metric


def curve(
    records: Iterable[dict[str, Any]], split: str, metrics: Sequence[str] = LOSSES
) -> Curve | None:
    """The curve of the first of `metrics` that the split has; the last record of a step counts.

    A run that resumed writes some steps again.
    """
    mine = [r for r in records if r.get("split") == split and isinstance(r.get("step"), int)]
    for metric in metrics:
        found = {
            r["step"]: float(r[metric]) for r in mine if isinstance(r.get(metric), (int, float))
        }
        if found:
            steps = tuple(sorted(found))
            return Curve(metric, split, steps, tuple(found[step] for step in steps))
    return None


def run_folders(root: Path) -> dict[str, RunFolder]:
    """Run folders at or under `root`, by their relative paths ("." for `root` itself), in the order of their names.

    Raises:
      RequestError: if `root` does not exist.
    """
    if not root.is_dir():
        raise RequestError(f"{root} does not exist; give the --workdir of a run or a sweep")
    if RunFolder(root).exists():
        return {".": RunFolder(root)}
    found = {}
    for folder in sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    ):
        for name, run in run_folders(folder).items():
            found[folder.name if name == "." else f"{folder.name}/{name}"] = run
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> leaf of nested dicts; an empty one is a leaf."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def outermost(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs that differ, without the fields of a kind that differs itself, which says it all."""
    kinds = [path.removesuffix("kind") for path in changes if path.endswith(".kind")]
    return {
        path: value
        for path, value in changes.items()
        if not any(path.startswith(kind) and path != f"{kind}kind" for kind in kinds)
    }
