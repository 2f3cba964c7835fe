"""One line of the table: a number, its spread over the rounds, and its target."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """A measured number.

    Attributes:
      name: what was measured.
      value: the number, a median where there are rounds.
      unit: of value, low and high.
      low, high: smallest and largest of the rounds, or None.
      at_most, at_least: the target, or None where there is none.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the target was met; None without one."""
        if self.at_most is None and self.at_least is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def target(self) -> str:
        """The target for people."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"passed": self.passed}


def median(name: str, values: Sequence[float], unit: str, **target: float) -> Row:
    """A row of one number a round."""
    return Row(name, statistics.median(values), unit, min(values), max(values), **target)


def milliseconds(name: str, seconds: Sequence[float]) -> Row:
    """A row of one time a round."""
    return median(name, [1e3 * s for s in seconds], "ms")


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float], **target: float) -> Row:
    """The median of the rounds' own ratios, which a machine that is slower for a minute does not move."""
    rounds = [a / b for a, b in zip(ours, theirs, strict=True)]
    value = statistics.median(rounds)
    return Row(name, value, "x", min(rounds), max(rounds), **target)
