"""After which steps something is due."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Every:
    """Periods in steps, 0 = only at the end; after the last step everything is due.

    Attributes:
      total: steps of the run.
      until: the step at which it pauses, evaluated and saved, or None.
    """

    total: int
    log: int
    evaluate: int
    save: int
    until: int | None = None

    def logs(self, done: int) -> bool:
        """Whether a record is due after `done` steps."""
        return self._due(self.log, done)

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due after `done` steps."""
        return done == self.until or self._due(self.save, done)

    def dues(self, done: int) -> tuple[bool, bool]:
        """Whether to evaluate and to save after `done` steps."""
        return done == self.until or self._due(self.evaluate, done), self.saves(done)

    def _due(self, period: int, done: int) -> bool:
        return done == self.total or (period > 0 and done % period == 0)
