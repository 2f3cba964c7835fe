"""Finding the whole number at which a cost comes nearest to a target."""

import dataclasses
import itertools
from collections.abc import Callable

from ablax.config import RequestError

HOLES = 512
"""So many refused values in a row are passed over; who needs more says `multiple_of`."""
LARGEST = 2**40
FLAT = 64
"""A cost that is the same at a value this many times as large does not depend on it."""


@dataclasses.dataclass
class Search:
    """A cost that rises with a whole number, of which some values are refused; asked as rarely as can be.

    Attributes:
      cost: value -> cost; raises RequestError for a value that is refused.
      multiple_of, low, high: which values there are.
    """

    cost: Callable[[int], float]
    multiple_of: int
    low: int
    high: int | None

    def __post_init__(self):
        self.known: dict[int, float | None] = {}
        self.refusal: RequestError | None = None
        self.first = -(-self.low // self.multiple_of)
        self.last = (self.high or LARGEST) // self.multiple_of

    def solve(self, target: float) -> tuple[int, float]:
        """The value whose cost is nearest to the target, the smaller one of two, and its cost.

        Raises:
          RequestError: if all values are refused, or the cost does not rise with them.
        """
        start = self._allowed(self.first, self.last)
        if start is None:
            raise self.refusal or RequestError(
                f"there is no multiple of {self.multiple_of} from {self.low} to {self.high}"
            )
        below, above = start, start
        while self._at(above) < target and above < self.last:
            below, far = above, min(2 * above + 1, self.last)
            further = self._allowed(far, self.last) or self._allowed(far, above + 1)
            if further is None:
                break
            above = further
            self._check()
            if above >= FLAT * start and self._at(above) == self._at(start):
                raise RequestError("it does not depend on the knob")
        while (between := self._between(below, above, target)) is not None:
            if self._at(between) < target:
                below = between
            else:
                above = between
            self._check()
        best = min((below, above), key=lambda index: (abs(self._at(index) - target), index))
        return best * self.multiple_of, self._at(best)

    def _between(self, below: int, above: int, target: float) -> int | None:
        """An allowed place inside: where a line would meet the target, kept off the ends so that each try helps."""
        if above - below < 2:
            return None
        low, high = self._at(below), self._at(above)
        share = (target - low) / (high - low) if high > low else 0.5
        guess = below + round((above - below) * min(max(share, 0.1), 0.9))
        guess = min(max(guess, below + 1), above - 1)
        up = self._allowed(guess, above - 1)
        return up if up is not None else self._allowed(guess, below + 1)

    def _allowed(self, start: int, end: int) -> int | None:
        """The first place on the way whose value is not refused."""
        step = 1 if end >= start else -1
        for index in range(start, end + step, step)[:HOLES]:
            if self._known(index) is not None:
                return index
        return None

    def _known(self, index: int) -> float | None:
        if index not in self.known:
            try:
                self.known[index] = self.cost(index * self.multiple_of)
            except RequestError as refusal:
                self.known[index], self.refusal = None, refusal
        return self.known[index]

    def _at(self, index: int) -> float:
        cost = self._known(index)
        assert cost is not None
        return cost

    def _check(self) -> None:
        asked = sorted(index for index, cost in self.known.items() if cost is not None)
        for before, after in itertools.pairwise(asked):
            if self._at(after) < self._at(before):
                raise RequestError(
                    f"it does not rise with the knob: {self._at(before):,.0f} at {before * self.multiple_of}, "
                    f"{self._at(after):,.0f} at {after * self.multiple_of}"
                )
