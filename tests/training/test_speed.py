"""Speed is said as far as it is known: per device, in model FLOPs, as a share of the peak."""

import types

import numpy as np
import pytest

from ablax.experiment import base, resolve
from ablax.models.flops import forward_flops_per_token
from ablax.objectives.sums import Sums
from ablax.training.meter import CLOCKED, Meter
from ablax.training.speed import Speed, peak_flops
from ablax.training.writers import describe


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_peaks(kind, teraflops):
    """Catches: a pattern that another device's matches first (v5 lite and v5, H100's two forms)."""
    assert peak_flops(kind) == teraflops * 1e12


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L40S", "NVIDIA GeForce RTX 4090", "TPU v4 lite"])
def test_unknown_devices_have_no_peak(kind):
    """Catches: a utilisation of hardware that nobody looked up."""
    assert peak_flops(kind) is None


def record_of(speed):
    """Two steps of 0.5 s each."""
    meter = Meter(speed)
    one = Sums(np.float32(3), np.int32(2))
    for _ in range(2):
        meter.add({"loss": one, "gradient_norm": np.float32(1), "refused": np.int32(0)}, 0.5)
    return meter.take(2)


def test_records_say_what_is_known():
    """Catches: a share of one device's peak for the work of all, seconds of one step for those of two."""
    record = record_of(Speed(tokens=1000, flops=4e12, devices=4, peak=10e12))
    assert record["tokens_per_second"] == 2000
    assert record["tokens_per_second_per_device"] == 500
    assert record["model_flops_per_second"] == 8e12
    assert record["mfu"] == pytest.approx(0.2)
    assert set(CLOCKED) <= set(record)
    assert describe(record) == "loss 1.5, gradient norm 1, tokens/s 2,000, mfu 20.0%"
    assert describe({"step": 1, "split": "test", "tokens": 51130.0}) == "tokens 51,130"


def test_records_say_nothing_else():
    """Catches: an mfu of None or of a made-up peak; a number per device where there is one."""
    record = record_of(Speed(tokens=1000, flops=4e12))
    assert set(CLOCKED) & set(record) == {"tokens_per_second", "model_flops_per_second"}
    assert set(CLOCKED) & set(record_of(Speed(tokens=1000))) == {"tokens_per_second"}


def test_a_step_of_an_experiment():
    """Catches: a forward pass only, a head at every position of a masked batch, the FLOPs of one row."""
    given = {
        "data.sequence_length": 20,
        "training.batch_size": 4,
        "model.num_layers": 1,
        "model.width": 8,
        "model.num_heads": 2,
        "parallel.data": 1,
    }
    device = types.SimpleNamespace(device_kind="TPU v4")
    experiment = resolve(base(model="encoder", objective="masked"), given)
    speed = Speed.of(experiment, 50, [device, device])
    per_token = forward_flops_per_token(experiment.model, 50, 20, predicted=3 / 20)
    assert (speed.tokens, speed.devices, speed.peak) == (80, 1, 275e12)
    assert speed.flops == pytest.approx(3 * 80 * per_token)
    own = types.SimpleNamespace(
        **{name: getattr(experiment, name) for name in ("data", "training", "parallel")}
    )
    own.model, own.objective = object(), object()
    assert Speed.of(own, 50, [device]).flops is None
