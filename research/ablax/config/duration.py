"""Lengths of training, whatever their unit."""

import math
import re
from typing import ClassVar

from ablax.config.knobs import RequestError


class Duration:
    """A length of training: `2000` (steps), `"3 epochs"`, `"2e9 tokens"` or `"5%"` (of the whole run).

    Raises:
      RequestError: if the text is none of these.
    """

    _PATTERN: ClassVar = re.compile(
        r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*(%|[a-z]*)\s*$"
    )
    _UNITS: ClassVar = {
        "": "steps",
        "step": "steps",
        "steps": "steps",
        "epoch": "epochs",
        "epochs": "epochs",
    }
    _UNITS |= {"token": "tokens", "tokens": "tokens", "%": "%"}

    def __init__(self, value: "int | str | Duration"):
        text = str(value)
        match = self._PATTERN.match(text)
        if match is None or match[2] not in self._UNITS or isinstance(value, bool):
            raise RequestError(
                f"{text!r} is not a duration; write 2000 (steps), '3 epochs', '2e9 tokens' or '5%'"
            )
        self.amount = float(match[1])
        if math.isinf(self.amount):
            raise RequestError(f"{text!r} is too long; write a number of steps")
        self.unit = self._UNITS[match[2]]
        if self.unit == "steps" and self.amount != int(self.amount):
            raise RequestError(
                f"{text!r} is not a whole number of steps; write {round(self.amount)}"
            )

    def steps(
        self,
        total: int | None = None,
        tokens_per_step: int | None = None,
        steps_per_epoch: float | None = None,
    ) -> int:
        """Number of optimizer steps, given what the run knows about itself.

        Raises:
          RequestError: if the unit needs a quantity that this run does not have.
        """
        per = {"steps": 1.0, "%": (total or 0) / 100, "epochs": steps_per_epoch}
        per["tokens"] = 1 / tokens_per_step if tokens_per_step else None
        rate = per[self.unit]
        if rate is None or (self.unit == "%" and total is None):
            raise RequestError(
                f"duration {self} cannot be turned into steps here; write a number of steps"
            )
        return math.ceil(self.amount * rate - 1e-9)

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        if self.unit == "steps":
            return str(amount)
        return f"{amount}%" if self.unit == "%" else f"{amount} {self.unit}"

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))
