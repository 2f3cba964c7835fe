"""All cells of a running sweep on one screen: where each is, how fast, and when the whole will be done."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ablax.history import curve
from ablax.run import RunFolder
from ablax.sweeps.controller import State
from ablax.watching import duration

EVERY_SECONDS = 1.0
STYLES = {"finished": "green", "skipped": "green", "failed": "red", "running": "cyan"}
ENDED = ("finished", "skipped", "unneeded", "failed")


class Screen:
    """Drawn again once a second, where there is a terminal.

    Args:
      sweep: the sweep's folder.
      slots: how many cells run at once.
    """

    def __init__(self, sweep: Path, slots: int, console: Console | None = None):
        self.sweep, self.slots = sweep, slots
        self.console = console or Console(stderr=True)
        self._live: Live | None = None
        self._drawn, self._began = 0.0, time.monotonic()
        self._took: dict[str, float] = {}
        self._states: Mapping[str, State] = {}

    @contextlib.contextmanager
    def shown(self) -> Iterator["Screen"]:
        """While the sweep runs; what became of it stays, where there is no terminal as one line."""
        if not self.console.is_terminal:
            yield self
            if self._states:
                self.say(self.summary(self._states).plain)
            return
        with Live(console=self.console, auto_refresh=False) as self._live:
            try:
                yield self
            finally:
                if self._states:
                    self._live.update(self.picture(self._states), refresh=True)

    def say(self, line: str) -> None:
        """A line above the screen."""
        self.console.print(f"ablax: {line}", markup=False, highlight=False)

    def show(self, states: Mapping[str, State]) -> None:
        """Draws the states."""
        self._states = states
        for folder, state in states.items():
            if state.status == "finished" and state.since and folder not in self._took:
                self._took[folder] = time.monotonic() - state.since
        if self._live is None or time.monotonic() - self._drawn < EVERY_SECONDS:
            return
        self._drawn = time.monotonic()
        self._live.update(self.picture(states), refresh=True)

    def picture(self, states: Mapping[str, State]) -> Group:
        """The table of what is not done, as high as the terminal, and a line about the whole."""
        table = Table(box=None, pad_edge=False)
        for column in ("cell", "status", "step", "loss", "tokens/s", "left"):
            table.add_column(column, justify="left" if column in ("cell", "status") else "right")
        order = ("running", "failed", "elsewhere", "waiting", "interrupted", *ENDED)
        rows = sorted(states, key=lambda folder: order.index(states[folder].status))
        room = max(3, self.console.height - 4)
        left = {folder: self._left(folder, states) for folder in rows}
        for folder in rows[:room]:
            state = states[folder]
            run = self._run(folder) if state.status in ("running", "elsewhere") else {}
            style = STYLES.get(state.status, "")
            status = state.status + (f" ({state.attempts})" if state.attempts > 1 else "")
            shown = duration(left[folder]) if state.status == "running" else "-"
            table.add_row(
                folder,
                Text(status, style),
                *(run.get(k, "-") for k in ("step", "loss", "speed")),
                shown,
            )
        more = [f"and {len(rows) - room} more"] if len(rows) > room else []
        return Group(table, *more, self.summary(states, left))

    def summary(
        self, states: Mapping[str, State], left: Mapping[str, float | None] | None = None
    ) -> Text:
        """How many cells are where, how many programs were compiled, when all will be done."""
        left = left or {folder: self._left(folder, states) for folder in states}
        counts: dict[str, int] = {}
        for state in states.values():
            counts[state.status] = counts.get(state.status, 0) + 1
        parts = [f"{count} {status}" for status, count in counts.items()]
        programs = [state.programs for state in states.values() if state.programs]
        if programs:
            made = sum(found["compiled"] for found in programs)
            reused = sum(found["reused"] for found in programs)
            parts.append(f"programs: {made} compiled, {reused} reused")
        open_ = [left[folder] for folder, state in states.items() if state.status not in ENDED]
        known = [seconds for seconds in open_ if seconds is not None]
        if open_ and len(known) == len(open_):
            parts.append(f"{duration(max(sum(known) / self.slots, max(known)))} left")
        parts.append(f"{duration(time.monotonic() - self._began)} so far")
        return Text(", ".join(parts), "bold")

    def _run(self, folder: str) -> dict[str, Any]:
        """What a running cell's folder says."""
        run = RunFolder(self.sweep / folder)
        records = [r for r in run.metrics() if r.get("split") == "train"]
        found = curve(records, "train")
        total = run.status().get("total_steps") if run.exists() else None
        if not found or not total:
            return {}
        speed = records[-1].get("tokens_per_second")
        return {
            "step": f"{found.steps[-1]:,}/{total:,}",
            "loss": f"{found.values[-1]:.4f}",
            "speed": f"{speed:,.0f}" if speed else "-",
            "done": found.steps[-1] / total,
        }

    def _left(self, folder: str, states: Mapping[str, State]) -> float | None:
        """Seconds that a cell still takes: by its own speed, or as those of its arm, or of all, took."""
        state = states[folder]
        if state.status in ENDED:
            return 0.0
        took = [seconds for name, seconds in self._took.items() if _arm(name) == _arm(folder)]
        took = took or list(self._took.values())
        expected = sum(took) / len(took) if took else None
        if state.status == "running":
            spent = time.monotonic() - state.since
            if done := self._run(folder).get("done"):
                return spent * (1 - done) / done
            return max(expected - spent, 0.0) if expected is not None else None
        return expected


def _arm(folder: str) -> str:
    return folder.rpartition("/")[0]
