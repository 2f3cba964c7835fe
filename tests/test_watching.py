"""Curves in the terminal, from the files of runs."""

import io
import json
import math

import pytest
from rich.console import Console

from ablax import history, watching
from ablax.config import RequestError
from ablax.run import write_json


def make_run(folder, rate=20.0, status="running", steps=200):
    folder.mkdir(parents=True)
    write_json(
        folder / "config.json",
        {"training": {"steps": 400, "batch_size": 5}, "data": {"sequence_length": 100}},
    )
    write_json(folder / "run.json", {"status": status, "total_steps": 400})
    with (folder / "metrics.jsonl").open("w") as lines:
        for step in range(10, steps + 1, 10):
            loss = 1.5 + 3 * math.exp(-step / rate)
            record = {"step": step, "split": "train", "nats_per_token": loss}
            lines.write(json.dumps(record | {"tokens_per_second": 1000.0}))
            lines.write("\n")
        for step in (steps // 2, steps):
            value = 1.5 + rate / 200
            record = {"step": step, "split": "validation", "nats_per_token": value}
            lines.write(json.dumps(record) + "\n")
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "wide" / "seed0")
    make_run(root / "deep" / "seed0", 60.0, "finished")
    return root


def shown(folder, width=100):
    console = Console(width=width, height=30, force_terminal=False, file=io.StringIO())
    watching.watch(folder, once=True, console=console)
    return console.file.getvalue()


def test_a_sweep_shows_every_run(sweep):
    text = shown(sweep)
    assert "validation nats per token over optimizer steps" in text
    assert "wide/seed0" in text
    assert "deep/seed0" in text
    assert "200/400" in text
    assert max(map(len, text.splitlines())) <= 100


def test_time_left_comes_from_the_rate_and_only_while_running(sweep):
    by_name = {run.name: run for run in watching.views(sweep)}
    assert by_name["wide/seed0"].seconds_left == pytest.approx((400 - 200) * 500 / 1000.0)
    assert by_name["deep/seed0"].seconds_left is None


def test_without_colour_each_run_has_its_letter(sweep):
    """Catches: escape codes in a log file, and runs that cannot be told apart there."""
    text = watching.picture(watching.views(sweep), 60, 12, color=False)
    assert "\x1b" not in text
    assert "aaa" in text
    assert "b wide/seed0" in shown(sweep)
    (train,) = [watching.View(**{**vars(v), "validation": None}) for v in watching.views(sweep)][:1]
    drawn = watching.picture([train], 60, 12)
    assert any("\u2800" <= character <= "\u28ff" for character in drawn)


def test_a_run_without_metrics_says_so(tmp_path):
    folder = tmp_path / "run"
    write_json(folder / "config.json", {})
    assert "no metrics yet" in shown(folder)


def test_live_curves_end_when_every_run_has_ended(tmp_path):
    """Catches: watching a finished run for ever."""
    make_run(tmp_path / "done", status="finished")
    screen = io.StringIO()
    watching.watch(tmp_path, console=Console(width=80, height=24, force_terminal=True, file=screen))
    assert "finished" in screen.getvalue()
    assert "\x1b[" in screen.getvalue()


def test_live_curves_are_redrawn_until_then(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "going", steps=100)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        write_json(folder / "run.json", {"status": "finished", "total_steps": 400})

    monkeypatch.setattr(watching.time, "sleep", sleep)
    screen = io.StringIO()
    console = Console(width=80, height=24, force_terminal=True, file=screen)
    watching.watch(tmp_path, every=0.5, console=console)
    assert slept == [0.5]
    assert screen.getvalue().index("running") < screen.getvalue().index("finished")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        watching.views(tmp_path / "nowhere")


def test_steps_written_twice_count_once():
    """A run that resumed writes steps again. Catches: a curve that runs backwards."""
    records = [{"step": s, "split": "train", "loss": v} for s, v in ((1, 3.0), (2, 9.0), (2, 2.0))]
    found = history.curve(records, "train")
    assert found is not None
    assert (found.steps, found.values) == ((1, 2), (3.0, 2.0))


def test_non_finite_values_do_not_break_the_picture():
    bad = history.Curve("loss", "train", (1, 2, 3), (3.0, math.nan, 2.0))
    run = watching.View("a", "running", 3, None, bad, None, None, None)
    assert "loss" in watching.picture([run], 60, 12)


def test_a_look_takes_time(tmp_path):
    """Catches: a negative wait, which is a traceback after the first look; none, which is a busy loop."""
    for every in (0, -1):
        with pytest.raises(RequestError, match="must be positive"):
            watching.watch(tmp_path, every=every)
