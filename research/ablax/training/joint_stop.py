"""A wish to stop that all ranks follow after the same step, whichever of them it was addressed to."""

import threading

from ablax.ranks import Ranks
from ablax.training.signals import Stop


class JointStop(Stop):
    """A `Stop` of several ranks.

    All ranks ask at the same places, so questions are counted. When one rank has the wish, each lets no further
    question pass and says how many it has seen; all follow the wish at the question after the highest number. A wish
    costs a few beats then, and a question without one costs nothing.

    Nothing is broken off: a rank that leaves alone would leave the others in a collective.

    Args:
      ranks: several.
    """

    def __init__(self, ranks: Ranks):
        super().__init__()
        self._ranks = ranks
        self._questions, self._at = 0, 0
        self._agreed = ""
        self._held, self._changed = False, threading.Condition()

    def __call__(self) -> str | None:
        """The wish, once it is every rank's."""
        with self._changed:
            self._questions += 1
            self._changed.wait_for(lambda: not self._held)
            return self._agreed if self._at and self._questions >= self._at else None

    def breakable(self, yes: bool):
        """See `Stop.breakable`; nothing is once there is something to save."""
        if not yes:
            self._breakable = False
        return super().breakable(yes and self._breakable)

    def beat(self) -> None:
        """What the heartbeat's thread does for it, a few words each time."""
        if self._at:
            return
        if self.reason:
            self._ranks.put("stop/wish", self.reason)
        wish = self._ranks.take("stop/wish")
        if not wish:
            return
        with self._changed:
            self._held = True
            count = self._questions
        self._ranks.put(f"stopping/{self._ranks.index}", str(count))
        counts = self._ranks.all("stopping") if self._ranks.first else {}
        if len(counts) == self._ranks.count:
            self._ranks.put("stop/at", str(1 + max(map(int, counts.values()))))
        if at := self._ranks.take("stop/at"):
            with self._changed:
                self._at, self._agreed, self._held = int(at), wish, False
                self._changed.notify_all()
