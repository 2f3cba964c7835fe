"""The screen of a running sweep."""

import io
import re

import pytest
from rich.console import Console

from ablax.run import write_json
from ablax.sweeps.controller import State
from ablax.sweeps.screen import Screen


@pytest.fixture
def running(tmp_path):
    """A sweep of which a cell is half done, one failed, and others wait."""
    folder = tmp_path / "one" / "seed0"
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {})
    write_json(folder / "run.json", {"total_steps": 8})
    record = '{"split": "train", "step": 4, "loss": 2.5, "tokens_per_second": 1234.0}\n'
    (folder / "metrics.jsonl").write_text(record)
    return tmp_path


def screen(folder, terminal, height=10):
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=terminal, color_system=None, width=100, height=height
    )
    return Screen(folder, 2, console), out


def states():
    made = {"compiled": 2, "reused": 5}
    waiting = {f"two/seed{seed}": State() for seed in range(20)}
    return {
        "one/seed0": State("running", attempts=2, since=1.0),
        "one/seed1": State("failed", error="boom"),
        "one/seed2": State("finished", programs=made),
        **waiting,
    }


def test_what_runs_and_what_failed_comes_first_and_the_rest_is_counted(running):
    """Catches: a table longer than the terminal that hides what runs; programs that nobody counts."""
    drawn, out = screen(running, terminal=True)
    drawn.console.print(drawn.picture(states()))
    said = re.sub(r"\x1b\[\d*m", "", out.getvalue())
    lines = said.splitlines()
    assert len(lines) <= 10
    assert lines[1].split()[:6] == ["one/seed0", "running", "(2)", "4/8", "2.5000", "1,234"]
    assert "one/seed1" in lines[2]
    assert "and 17 more" in said
    assert "1 running, 1 failed, 1 finished, 20 waiting" in said
    assert "programs: 2 compiled, 5 reused" in said


@pytest.mark.parametrize("terminal", [True, False])
def test_the_last_word_is_how_it_ended(running, terminal):
    """Catches: a last frame that shows cells running that have finished."""
    drawn, out = screen(running, terminal)
    now = states()
    with drawn.shown():
        drawn.show(now)
        for state in now.values():
            state.status = "finished"
        drawn.show(now)
    assert "23 finished" in out.getvalue()
