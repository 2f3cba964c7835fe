"""Writers: metrics survive kills, rewinds and each other's failures."""

import io
import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.run import RunFolder
from ablax.training.records import Records
from ablax.training.writers import (
    ConsoleWriter,
    Guarded,
    TensorBoardWriter,
    WritersConfig,
    open_writers,
)

QUIET = WritersConfig(console=False, tensorboard=False)


def record(step: int, split: str = "train", **values) -> dict:
    return {"step": step, "split": split, "loss": 2.0 / step, **values}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_a_resumed_run_continues_its_metrics(folder: RunFolder):
    """Fails if records after the checkpoint stay, are doubled, or half a line stays."""
    with open_writers(QUIET, folder, 10) as writers:
        for step in (1, 2):
            writers.write(record(step))
        cursor = writers.cursor()
        writers.write(record(3))
    with folder.metrics_file.open("ab") as file:
        file.write(b'{"step": 4, "spl')
    with open_writers(QUIET, folder, 10, cursor) as writers:
        writers.write(record(3, note="again"))
    records = list(folder.metrics())
    assert [r["step"] for r in records] == [1, 2, 3]
    assert records[-1]["note"] == "again"


def test_a_fresh_run_starts_an_empty_file(folder: RunFolder):
    """Fails if a run that was killed before its first checkpoint keeps the records of that start."""
    for _ in range(2):
        with open_writers(QUIET, folder, 10) as writers:
            writers.write(record(1))
    assert len(list(folder.metrics())) == 1


def test_lost_metrics_are_said(folder: RunFolder):
    """Fails if a shortened file is padded with zeros, or nobody is told."""
    folder.metrics_file.write_bytes(b'{"step": 1, "split": "train"}\n{"ste')
    said: list[str] = []
    with open_writers(QUIET, folder, 10, 100, say=said.append) as writers:
        writers.write(record(2))
    assert [r["step"] for r in folder.metrics()] == [1, 2]
    assert "lacks 65 bytes" in said[0]


def test_numbers_become_json(tmp_path: Path):
    """Fails if a line is no JSON (NaN is none) or a NumPy number breaks it."""
    records = Records(tmp_path / "m.jsonl")
    records.write({"step": np.int64(1), "x": np.float32(0.5), "y": float("nan"), "z": -np.inf})
    line = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"step": 1, "x": 0.5, "y": "nan", "z": "-inf"}
    assert float(line["z"]) == -np.inf
    records.close()


class Broken:
    def __init__(self):
        self.calls = 0

    def write(self, record):
        self.calls += 1
        raise OSError("the network is gone\nand more")

    def close(self):
        raise AssertionError("a writer that is off is closed")


def test_a_failing_writer_is_said_once_and_switched_off():
    """Fails if a writer's failure stops training, or is repeated at every record."""
    said: list[str] = []
    broken = Broken()
    guarded = Guarded("cloud", lambda: broken, said.append)
    for step in (1, 2):
        guarded.write(record(step))
    guarded.close()
    assert broken.calls == 1
    assert said == [
        "the cloud writer failed and is off for the rest of this run (OSError: the network is gone)"
    ]


def test_a_writer_that_cannot_start_is_said():
    """Fails if training does not start because a writer does not."""
    said: list[str] = []
    Guarded("cloud", lambda: open("/nonexistent/x"), said.append).write(record(1))  # noqa: SIM115
    assert len(said) == 1


def test_a_full_disk_leaves_whole_lines(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    """Fails if half a line stays and swallows the next record after a resume."""
    said: list[str] = []
    with open_writers(QUIET, folder, 10, say=said.append) as writers:
        writers.write(record(1))
        real = writers._records._file

        class Full:
            def write(self, line):
                return real.write(line[:5])

            def __getattr__(self, name):
                return getattr(real, name)

        monkeypatch.setattr(writers._records, "_file", Full())
        writers.write(record(2))
        writers.write(record(3))
    assert folder.metrics_file.read_bytes().endswith(b"}\n")
    assert len(list(folder.metrics())) == 1
    assert "No space left" in said[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_console(capsys: pytest.CaptureFixture):
    """Fails if a log file gets a progress bar, or talk goes to stdout."""
    console = ConsoleWriter(10, 0, sys.stderr)
    console.write(record(1, tokens_per_second=12345.6))
    console.write(record(2, tokens_per_second=12345.6))
    console.write(record(2, "validation", bits_per_byte=1.25))
    console.close()
    out, err = capsys.readouterr()
    assert out == ""
    first, second, third = err.splitlines()
    assert first == "step 1/10 train: loss 2, tokens/s 12,346"
    assert second.startswith("step 2/10 train: loss 1, tokens/s 12,346, ETA 0:00:0")
    assert third == "step 2/10 validation: loss 1, bits per byte 1.25"


def test_progress_bar(monkeypatch: pytest.MonkeyPatch):
    """Fails if the bar does not move, or an evaluation overwrites it."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    console = ConsoleWriter(10, 4, terminal)
    console.write(record(5))
    console.write(record(5, "validation"))
    console.close()
    text = terminal.getvalue()
    assert "4/10" in text.replace(" ", "")
    assert "5/10" in text.replace(" ", "")
    assert "step 5 validation: loss 0.4" in text


def events(folder: Path) -> list:
    """All events of a TensorBoard folder, in the order of its files."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails if a scalar is lost, or a rewind shows the steps after the checkpoint twice."""
    folder = tmp_path / "tensorboard"
    for start, time_stamp in ((0, 1.0), (2, 2.0)):
        monkeypatch.setattr("time.time", lambda t=time_stamp: t)
        writer = TensorBoardWriter(folder, start)
        writer.write(record(start + 1, note="text", best=True))
        writer.close()
    found = events(folder)
    values = [(v.tag, e.step, v.simple_value) for e in found for v in e.summary.value]
    assert ("train/loss", 1, 2.0) in values
    assert ("train/loss", 3, np.float32(2 / 3)) in values
    assert [e.step for e in found if e.HasField("session_log") and e.session_log.status == 1] == [3]


def test_wandb_missing_is_one_line(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    """Fails if a chosen extra that is not installed is skipped, or is a traceback."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = WritersConfig(console=False, tensorboard=False, wandb=True)
    with pytest.raises(RequestError, match=r"ablax\[wandb\]"):
        open_writers(config, folder, 10)


def test_wandb_offline(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    """Fails if a resumed run gets another id or reuses rows, a key reaches a file, or --offline goes online."""
    pytest.importorskip("wandb")
    key = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_DATA_DIR", str(folder.path / "data"))
    monkeypatch.setenv(
        "WANDB_MODE", "offline"
    )  # what --offline sets; the configuration says online
    config = WritersConfig(console=False, tensorboard=False, wandb=True)
    rows = []
    for cursor in (0, 0):
        with open_writers(config, folder, 10, cursor, say=pytest.fail) as writers:
            writers.write(record(5))
            kept = json.loads((folder.path / "wandb.json").read_text())
            rows.append(kept["reserved"])
            # offline-run-TIME-ID, and a number when a second run starts within the same second
            ids = {p.name.split("-")[3] for p in (folder.path / "wandb").glob("offline-run-*")}
            assert ids == {kept["id"]}
    assert rows == [10_000, 20_000]
    files = [Path(d, name) for d, _, names in os.walk(folder.path) for name in names]
    assert any(path.suffix == ".wandb" for path in files)
    assert not any(key.encode() in path.read_bytes() for path in files if path.is_file())
