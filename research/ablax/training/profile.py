"""`--profile=N:M`: a JAX trace of the steps from N to M, in the run folder."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from ablax.config import RequestError
from ablax.training.phases import Phase, Phases

Say = Callable[[str], None]


def steps_of(text: str) -> tuple[int, int]:
    """The first and last step that `N:M` means.

    Raises:
      RequestError: if it means none.
    """
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise RequestError(
            f"--profile={text} must be N:M, the first and the last step to trace: 10:12"
        )
    return int(first), int(last)


class Profile:
    """Watches the phases of a run; a trace runs from the first step to the last one.

    The first step of a process compiles: a trace that begins later shows the steps alone.

    Args:
      folder: where the trace is written.
      first, last: steps.
      say: takes messages.
    """

    def __init__(self, folder: Path, first: int, last: int, say: Say):
        self.folder, self.first, self.last, self._say = folder, first, last, say
        self.running = self.done = False
        self._step: jax.profiler.StepTraceAnnotation | None = None

    def enter(self, phase: Phase) -> None:
        """Takes the phase that begins."""
        # The device works on a step until its metrics are fetched: while the next one is made, or before what follows.
        fetched = phase.step - (0 if phase.name in ("evaluate", "save", "end") else 2)
        due = phase.name == "data" and self.first <= phase.step <= self.last
        if self.running and fetched >= self.last:
            self.close()
        elif due and not self.running and not self.done:
            jax.profiler.start_trace(self.folder)
            self.running = True
        if phase.name == "data":
            self._leave_step()
            if self.running:
                self._step = jax.profiler.StepTraceAnnotation("train", step_num=phase.step)
                self._step.__enter__()

    def close(self) -> None:
        """Writes the trace, if one runs, and says how to look at it."""
        self._leave_step()
        if not self.running:
            return
        self.running, self.done = False, True
        jax.profiler.stop_trace()
        self._say(
            f"profile: {self.folder}; look at it with `pip install xprof` and `xprof --logdir={self.folder}`, "
            "or open its *.trace.json.gz at https://ui.perfetto.dev"
        )

    def _leave_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None


@contextlib.contextmanager
def profiling(steps: tuple[int, int] | None, folder: Path, say: Say) -> Iterator[Phases]:
    """The phases of a run, watched so that `steps` are traced; None traces nothing."""
    if steps is None:
        yield Phases()
        return
    profile = Profile(folder, *steps, say)
    try:
        yield Phases(profile.enter)
    finally:
        profile.close()
    if not profile.done:
        say(f"profile: no step from {steps[0]} to {steps[1]} was made, so nothing was traced")
