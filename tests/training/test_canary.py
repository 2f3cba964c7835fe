"""A kernel that is not the reference on this device ends the run before its first step; one that is goes through."""

import dataclasses
import json
import pathlib
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.experiment import base, resolve
from ablax.models.attention import DotProductAttention
from ablax.models.kernels import KERNELS, Kernel
from ablax.trainer import train
from ablax.training import session
from ablax.training.canary import canary_rows, check_kernel, with_kernel
from ablax.training.loop import Loop

T = 16
README = pathlib.Path(__file__).resolve().parent.parent.parent / "README.md"


def forgetful(core, query, key, value, rule, bias):
    """Attention over all earlier tokens of a row, whatever their segment."""
    ones = jnp.ones_like(rule.query_segments)
    whole = rule.replace(query_segments=ones, key_segments=ones)
    return core.build()(query, key, value, mask=whole.mask(), bias=bias)


@dataclasses.dataclass(frozen=True)
class Owned(DotProductAttention):
    """A core of a user's own with a kernel that is right for packed rows, and one that is not."""

    KERNELS: ClassVar = {
        "right": KERNELS["xla"],
        "forgetful": Kernel(forgetful, lambda core, task: None),
        "broken": Kernel(lambda *_: 1 / 0, lambda core, task: None),
    }


def experiment_of(kernel, **changes):
    given = {
        "data.source": f"text:{README}",
        "data.source.document": "line",
        "data.split.validation": 0.2,
        "data.tokenizer": "byte",
        "data.layout": "packed",
        "data.sequence_length": T,
        "model.attention": f"{__name__}:Owned",
        "model.attention_kernel": kernel,
        "model.num_layers": 1,
        "model.width": 16,
        "model.num_heads": 2,
        "training.batch_size": 2,
        "training.steps": 1,
        "schedule": "constant",
        "evaluation.documents": 1,
        "writers.tensorboard": False,
    }
    return resolve(base(), given | changes, extend=[Owned])


@pytest.mark.parametrize("name", ["forgetful", "broken"])
def test_a_wrong_kernel_is_refused_before_the_first_step(name, tmp_path, monkeypatch):
    """Catches: a canary that is not called, that looks at the loss only, or whose rows have one segment."""
    monkeypatch.setattr(Loop, "run", lambda *_, **__: pytest.fail("the run began"))
    with pytest.raises(RequestError, match=f"attention_kernel={name} does not .*; set model"):
        train(experiment_of(name), tmp_path / "run", progress=False, extend=[Owned])


def test_a_right_kernel_trains_and_run_json_says_why_it_was_chosen(tmp_path):
    """Catches: a tolerance below the roundings of float32."""
    said = []
    train(experiment_of("right"), tmp_path / "run", extend=[Owned], say=said.append)
    status = json.loads((tmp_path / "run" / "run.json").read_text())
    assert status["status"] == "finished"
    assert status["attention_kernel"] == {"name": "right", "why": "asked for"}
    assert any("attention: right (asked for)" in line for line in said)


@pytest.mark.parametrize("name", ["right", "forgetful"])
def test_the_canary_in_bfloat16(name):
    """Catches: a tolerance of bfloat16 so wide that a kernel without segments gets through, or too narrow for XLA's."""
    experiment, _ = with_kernel(experiment_of(name, **{"model.dtype": "bfloat16"}), "cpu")
    program = session.build_program(experiment, 31, session.Clock(1, 32, 1.0))
    hyper = session.hyper_of(experiment)
    params = program.init(session.root_key(0), hyper).params
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 31, (2, T + 1)).astype(np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (2, T)),
        "segment_ids": np.ones((2, T), np.int32),
        "loss_weights": np.ones((2, T), np.float32),
    }
    if name == "right":
        check_kernel(program, params, hyper, batch)
        return
    with pytest.raises(RequestError, match=r"the gradient of .* is off by"):
        check_kernel(program, params, hyper, batch)


def test_canary_rows():
    """Catches: rows without a second segment or padding; segments in rows that must have one; a row of like tokens,
    in which a wrong kernel is not seen."""
    batch = {
        "tokens": np.stack([np.arange(16) % 2, np.arange(16)]).astype(np.int32),
        "positions": np.tile(np.arange(16, dtype=np.int32), (2, 1)),
        "segment_ids": np.ones((2, 16), np.int32),
        "loss_weights": np.ones((2, 16), np.float32),
    }
    rows = canary_rows(batch, whole_rows=False)
    np.testing.assert_array_equal(rows["tokens"], [np.arange(16)] * 2)
    np.testing.assert_array_equal(rows["segment_ids"], [[1] * 16, [1] * 7 + [2] * 7 + [0] * 2])
    np.testing.assert_array_equal(rows["positions"][1, :14], [*range(7), *range(7)])
    np.testing.assert_array_equal(rows["loss_weights"], rows["segment_ids"] != 0)
    whole = canary_rows(batch, whole_rows=True)["segment_ids"]
    np.testing.assert_array_equal(whole, [[1] * 16, [1] * 14 + [0] * 2])
