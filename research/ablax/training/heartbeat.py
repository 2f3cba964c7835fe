"""Heartbeats of a run's ranks: whoever is dead, frozen or stuck is named, and all end, instead of waiting for ever.

Each rank writes a beat, its phase and step, into the key-value store that process 0 holds; process 0 reads them all and
judges; the others read process 0's. So a thousand ranks cost process 0 a thousand words a beat, and each other one two.
A beat comes from a thread, which goes on while the main thread waits in a collective.
"""

import contextlib
import dataclasses
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import jax

from ablax import distributed
from ablax.config import RequestError, knob
from ablax.lease import is_dead, machine
from ablax.ranks import LINGER_SECONDS, RankFailed, Ranks, code_of
from ablax.training.phases import Phases
from ablax.training.waiting import waits

LONG = ("start", "compile", "evaluate", "save")
"""Phases that may take `patience` rather than `stuck` seconds."""
ORDER = ("start", "data", "compile", "step", "evaluate", "save", "end")
GRACE = 2.0
"""Seconds for the last words: in run.json, and between ranks."""


@dataclasses.dataclass(frozen=True)
class HeartbeatConfig:
    """When ranks of a run in several processes count as lost; all then end with 1."""

    silence: float = knob(
        30.0,
        "Seconds without a sign of life after which a rank counts as dead or frozen.",
        mark="execution",
    )
    stuck: float = knob(
        600.0,
        "Seconds that a rank may wait for one batch or one step, collectives included.",
        mark="execution",
    )
    patience: float = knob(
        3600.0,
        "Seconds that starting, compiling, one evaluation or one save may take.",
        mark="execution",
    )

    def __post_init__(self):
        for name in ("silence", "stuck", "patience"):
            if not getattr(self, name) > 0:
                raise RequestError(f"{name}={getattr(self, name)} must be more than 0 seconds")


@dataclasses.dataclass(frozen=True)
class Beat:
    """A rank's sign of life.

    Attributes:
      number: grows by one with each beat.
      phase, step: where its main thread is.
      seconds: how long it has been there, by its own clock.
      host, machine, pid: its process; the machine's name tells containers apart.
      waits: whether it seems to wait for the others, see `waiting.waits`.
    """

    number: int
    phase: str
    step: int
    seconds: float
    host: str
    machine: str
    pid: int
    waits: bool = False

    def __str__(self) -> str:
        return f"in {self.phase} at step {self.step}"


def stuck(beats: Mapping[int, Beat], config: HeartbeatConfig) -> str | None:
    """One line about the rank that holds the others up, once a rank is longer in a phase than allowed.

    When one is stuck, all soon wait for it, in the collective of the step that it has not reached: the culprit is the
    one that waits for nobody, and of several such ones, or none, the one that is least far.
    """
    late = {
        rank
        for rank, beat in beats.items()
        if beat.seconds > (config.patience if beat.phase in LONG else config.stuck)
        and beat.phase != "end"
    }
    if not late:
        return None
    rank, beat = min(
        ((rank, beats[rank]) for rank in beats),
        key=lambda item: (
            item[1].waits,
            item[1].step,
            ORDER.index(item[1].phase),
            -item[1].seconds,
        ),
    )
    return (
        f"rank {rank} ({beat.host}, pid {beat.pid}) is stuck {beat}, for {beat.seconds:.0f} s: all ranks end; longer "
        "waits are allowed by heartbeat.stuck and heartbeat.patience"
    )


def gone(rank: int, beat: Beat | None, seconds: float, why: str) -> str:
    """One line about a rank that gives no sign of life."""
    if beat is None:
        return f"rank {rank} gave no sign of life for {seconds:.0f} s ({why}): all ranks end"
    return f"rank {rank} ({beat.host}, pid {beat.pid}) {why}, last heard of {seconds:.0f} s ago {beat}: all ranks end"


class Heartbeat:
    """The beat of this rank and its eye on the others.

    Args:
      ranks: several.
      config: how long to wait.
      phases: where this process is.
      last_words: called on process 0 with the line that ends the run.
      with_beat: called after each beat.
    """

    def __init__(
        self,
        ranks: Ranks,
        config: HeartbeatConfig,
        phases: Phases,
        last_words: Callable[[str], None],
        with_beat: Callable[[], None],
    ):
        self._ranks, self._config, self._phases = ranks, config, phases
        self._last_words, self._with_beat = last_words, with_beat
        self._period = min(1.0, config.silence / 5, config.stuck / 5)
        self._number, self._stop = 0, threading.Event()
        self._contact, self._ending = time.monotonic(), threading.Lock()
        self._seen: dict[int, tuple[Beat, float]] = {}
        self._began = time.monotonic()
        for work in (self._beats, self._watch):
            threading.Thread(target=work, daemon=True, name="ablax-heartbeat").start()

    def close(self) -> None:
        """No more beats: this rank leaves in order."""
        self._stop.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._ranks.put(f"left/{self._ranks.index}", "")

    def _beats(self) -> None:
        while not self._stop.is_set():
            try:
                self._beat()
            except jax.errors.JaxRuntimeError:
                if not self._stop.is_set():
                    self._lost("is gone")
            self._contact = time.monotonic()
            self._stop.wait(self._period)

    def _beat(self) -> None:
        self._number += 1
        phase = self._phases.current
        beat = Beat(
            self._number,
            phase.name,
            phase.step,
            round(time.monotonic() - phase.since, 1),
            platform.node(),
            machine(),
            os.getpid(),
            waits(),
        )
        self._ranks.put(f"beats/{self._ranks.index}", json.dumps(dataclasses.asdict(beat)))
        if self._ranks.first:
            self._note(self._ranks.all("beats"))
            if line := self._judge():
                self._ranks.fail(RankFailed(line))
        elif word := self._ranks.take("beats/0"):
            self._note({0: word})
        if failure := self._ranks.failure():
            self._finish(str(failure), code_of(failure))
        self._with_beat()

    def _note(self, words: Mapping[int, str]) -> None:
        now = time.monotonic()
        for rank, word in words.items():
            beat = Beat(**json.loads(word))
            before = self._seen.get(rank)
            if before is None or before[0].number != beat.number:
                self._seen[rank] = beat, now

    def _judge(self) -> str | None:
        """On process 0: the line that ends the run, if it must end."""
        now, left = time.monotonic(), self._ranks.all("left")
        for rank in set(range(self._ranks.count)) - left.keys():
            beat, when = self._seen.get(rank, (None, self._began))
            allowed = self._config.silence if beat else self._config.patience
            if beat and _is_dead(beat):
                return gone(rank, beat, now - when, "is dead")
            if now - when > allowed:
                return gone(rank, beat, now - when, "is frozen or unreachable")
        beats = {rank: beat for rank, (beat, _) in self._seen.items() if rank not in left}
        return stuck(beats, self._config)

    def _watch(self) -> None:
        """Ends this process when process 0 does not answer: the thread that asks it hangs in the question."""
        while not self._stop.wait(self._period):
            waited = time.monotonic() - self._contact
            if waited > self._config.silence:
                self._lost("does not answer")
            elif waited > 2 * self._period and not self._ranks.coordinator_listens():
                self._lost("is dead")

    def _lost(self, why: str) -> None:
        beat, when = self._seen.get(0, (None, self._began))
        self._finish(gone(0, beat, time.monotonic() - when, why), 1)

    def _finish(self, line: str, code: int) -> None:
        if self._stop.is_set() or not self._ending.acquire(blocking=False):
            return
        if self._ranks.first:
            # The file system may be what hangs.
            words = threading.Thread(target=self._last_words, args=(line,), daemon=True)
            words.start()
            words.join(GRACE)
        leaving = threading.Thread(target=self._ranks.leave, daemon=True)
        leaving.start()
        leaving.join(LINGER_SECONDS)
        for beat, _ in self._seen.values():
            _kill_frozen(beat)
        distributed.end(line, code)


def _is_dead(beat: Beat) -> bool:
    """Whether a process of this machine has ended; one that its parent has not asked for yet (Z) has."""
    return is_dead(dataclasses.asdict(beat)) or (_here(beat) and _state(beat.pid) in ("Z", "X"))


def _here(beat: Beat) -> bool:
    return beat.machine == machine() and beat.pid != os.getpid()


def _kill_frozen(beat: Beat) -> None:
    """A stopped process of this machine cannot end itself."""
    if _here(beat) and _state(beat.pid) in ("T", "t"):
        with contextlib.suppress(OSError):
            os.kill(beat.pid, signal.SIGKILL)


def _state(pid: int) -> str | None:
    """The letter of /proc: R, S, D, Z, T ...; None where that cannot be read."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return None


@contextlib.contextmanager
def beating(
    ranks: Ranks,
    config: HeartbeatConfig,
    phases: Phases,
    last_words: Callable[[str], None],
    with_beat: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Beats while the block runs, if there are several ranks; an exception in it ends all of them."""
    if not ranks.several:
        yield
        return
    ranks.begin()
    heart = Heartbeat(ranks, config, phases, last_words, with_beat)
    try:
        yield
    except BaseException as error:
        if _cut_off(error):
            # Another rank is gone: the heartbeat learns which, says so and ends this process.
            time.sleep(config.silence + GRACE)
        ranks.fail(error)
        heart.close()
        raise
    heart.close()


def _cut_off(error: BaseException) -> bool:
    """Whether an error may be that of a collective whose other end is gone."""
    text = str(error)
    runtime = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in text
    return runtime or "Gloo" in text or "Barrier" in text
