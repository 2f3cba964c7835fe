"""A trace lies in the run folder, holds the steps that were asked for, and a wrong range is refused."""

import gzip
import json

import pytest

from ablax.config import RequestError
from ablax.experiment import base, resolve
from ablax.trainer import train
from ablax.training.profile import profiling, steps_of

SMALL = {
    "data.source": "builtin:python_reference",
    "data.tokenizer": "byte",
    "data.sequence_length": 8,
    "model": "lstm",
    "model.num_layers": 1,
    "model.width": 4,
    "training.batch_size": 2,
    "training.steps": 6,
    "schedule": "constant",
    "evaluation.documents": 1,
    "writers.tensorboard": False,
}


def test_the_trace_holds_the_steps(tmp_path):
    """Catches: a trace that is never stopped, one that begins a step late, a folder that nobody is told of."""
    said = []
    train(resolve(base(), SMALL), tmp_path / "run", profile=(3, 4), say=said.append)
    (trace,) = (tmp_path / "run" / "profile").rglob("*.trace.json.gz")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {e["args"]["step_num"] for e in events if e.get("name") == "train"}
    assert {"3", "4"} <= steps <= {"3", "4", "5"}
    assert any(str(tmp_path / "run" / "profile") in line and "xprof" in line for line in said)


def test_steps_that_are_not_made_are_said(tmp_path):
    """Catches: a run that ends before its profile, or resumes after it, in silence."""
    said = []
    with profiling((3, 4), tmp_path, said.append) as phases:
        phases.enter("data", 1)
    assert "no step from 3 to 4 was made" in said[0]


@pytest.mark.parametrize("text", ["3", "4:3", "0:2", "a:b", ""])
def test_a_wrong_range_is_one_line(text):
    with pytest.raises(RequestError, match="must be N:M"):
        steps_of(text)
