"""Saves of a run on a disk that may fail: said, recorded, tried again, and never believed unless durable."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from ablax.run import RunFolder, now
from ablax.training.checkpoints import Checkpoints
from ablax.training.disk import SaveError

GOES_ON = "; training goes on, and the next save tries again"


class Saving:
    """The saves of a run, in order.

    A save that fails does not end the run, because the state in memory is worth more than the one that was not
    written: it is said and recorded in run.json (`failed_saves`), and the next save that is due tries again. Only the
    last one must become durable (`finish`), which says so itself if it does not.

    Args:
      checkpoints: where states go.
      folder: the run.
      say: takes one line of text.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        folder: RunFolder,
        say: Callable[[str], None],
    ):
        self.say = say
        self._checkpoints, self._folder = checkpoints, folder
        self._asked: int | None = None
        self._error: SaveError | None = None

    def save(
        self,
        step: int,
        state: Any,
        cursor: Mapping[str, Any],
        config: Mapping[str, Any],
        scores: Mapping[str, float],
        ending: bool,
    ) -> None:
        """Starts saving, after the save before has become durable or has failed; see `Checkpoints.save`.

        Args:
          ending: whether the run ends with this save, so that `finish` follows and not another one.
        """
        self._settle("; the last save tries again" if ending else GOES_ON)
        self._asked = step
        try:
            self._checkpoints.save(step, state, cursor, config, scores)
        except SaveError as error:
            self._failed(error, None if ending else GOES_ON)
        else:
            self._note(step=step, seconds=cursor["seconds"])

    def last_good(self) -> int | None:
        """The newest durable step, that of a save which still goes on included; for a run that ends without saving."""
        self._settle("")
        return self._checkpoints.latest_step()

    def finish(self) -> None:
        """Returns when the state of the last `save` is durable.

        Raises:
          SaveError: if it did not become durable.
        """
        self._settle(None)
        if error := self._error:
            text = f"{error}; the run ends without it: run the same command to go on"
            raise SaveError(text, error.needed, error.free) from error

    def _settle(self, outlook: str | None) -> None:
        try:
            self._checkpoints.wait()
        except SaveError as error:
            self._failed(error, outlook)
        else:
            if self._asked in self._checkpoints.all_steps():
                self._error = None

    def _failed(self, error: SaveError, outlook: str | None) -> None:
        """Records a failure, and says it with what follows from it, unless that is None: `finish` raises it."""
        self._error = error
        if outlook is not None:
            self.say(f"{error}{outlook}")
        failure = {"step": self._asked, "time": now(), "error": str(error)}
        with contextlib.suppress(OSError):
            failures = [*self._folder.status().get("failed_saves", []), failure]
            self._note(step=self._checkpoints.latest_step() or 0, failed_saves=failures)

    def _note(self, **entries: Any) -> None:
        with contextlib.suppress(OSError):  # the disk is full: what was said on stderr remains
            self._folder.update(**entries)
