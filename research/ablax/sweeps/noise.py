"""The noise of a sweep, by where it comes from, and the floor under which no difference is claimed."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ablax.sweeps.statistics import CONFIDENCE


@dataclasses.dataclass(frozen=True)
class Noise:
    """Standard deviations of one run's metric.

    Attributes:
      repeat: of the same arm and seed run again, pooled over all that were; None if none was.
      repeat_df: degrees of freedom of it.
      seed: of other seeds of the same arm, pooled over the arms, what repeats would make left out where it is known;
        None without two seeds of an arm.
      evaluation: what another sample of documents would make of one trained model's metric, the root of the mean
        square over models; None where no sums over documents lie in the run folders.
    """

    repeat: float | None
    repeat_df: int
    seed: float | None
    evaluation: float | None


def noise(
    values: Mapping[str, Mapping[int, float]],
    repeats: Mapping[tuple[str, int], Sequence[float]],
    evaluation: Sequence[float] = (),
) -> Noise:
    """Separates a sweep's noise.

    Args:
      values: arm -> seed -> metric; arms of which a seed diverged are better left out.
      repeats: (arm, seed) -> the metric of each run of it, the first included.
      evaluation: standard errors of trained models' metrics over documents.
    """
    repeat, repeat_df = _pooled(list(repeats.values()))
    total, _ = _pooled([list(own.values()) for own in values.values()])
    seed = total and math.sqrt(max(total**2 - (repeat or 0.0) ** 2, 0.0))
    root = math.sqrt(np.mean(np.square(evaluation))) if len(evaluation) else None
    return Noise(repeat, repeat_df, seed, root)


def _pooled(groups: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """Standard deviation within groups, and its degrees of freedom."""
    arrays = [np.asarray(group, np.float64) for group in groups]
    df = sum(len(group) - 1 for group in arrays if len(group))
    if not df:
        return None, 0
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in arrays if len(group))
    return math.sqrt(squares / df), df


def floor(
    found: Noise, n: int, evaluation: float | None, documents: int, confidence: float = CONFIDENCE
) -> float | None:
    """The largest difference of two arms' means that repeats alone, or the choice of documents alone, would often make.

    Args:
      n: pairs of seeds.
      evaluation: standard error of the difference over documents, or None.
      documents: how many.

    Returns:
      None where neither is known.
    """
    quantile = (1 + confidence) / 2
    parts = []
    if found.repeat is not None:
        parts.append(
            float(stats.t.ppf(quantile, found.repeat_df)) * found.repeat * math.sqrt(2 / n)
        )
    if evaluation is not None:
        parts.append(float(stats.t.ppf(quantile, documents - 1)) * evaluation)
    return max(parts) if parts else None


def starred(difference: float | None, p_holm: float | None, under: float | None) -> bool:
    """Whether a difference is claimed: p adjusted by Holm at most 5 %, and larger than the floor where one is known."""
    if difference is None or p_holm is None or p_holm > 1 - CONFIDENCE:
        return False
    return under is None or abs(difference) > under


def repeats_of(
    plan: Mapping[str, Any], records: Mapping[str, dict], metric: str, arms: Any
) -> dict[tuple[str, int], list[float]]:
    """(arm, seed) -> the metric of every finished run of it."""
    found: dict[tuple[str, int], list[float]] = {}
    for cell in plan["cells"]:
        value = records[cell["folder"]].get("metrics", {}).get(metric)
        if cell["arm"] in arms and isinstance(value, float) and math.isfinite(value):
            found.setdefault((cell["arm"], cell["seed"]), []).append(value)
    return found
