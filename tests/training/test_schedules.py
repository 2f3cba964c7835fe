"""Schedules: closed forms at every step."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import Duration, RequestError, static, traced
from ablax.training.schedules import (
    SCHEDULES,
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    WSDConfig,
    unchanged_until,
)

TOTAL = 50


def build(config, total: int = TOTAL):
    hyper = {name: jnp.float32(value) for name, value in traced(config).items()}
    return static(config).build(total, functools.partial(Duration.steps, total=total), hyper)


def warm(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def decayed(step: int, start: int, final: float, shape) -> float:
    progress = min(max((step - start) / (TOTAL - start), 0), 1) if start < TOTAL else 0
    return final + (1 - final) * shape(progress)


SHAPES = {
    "linear": lambda q: 1 - q,
    "cosine": lambda q: (1 + math.cos(math.pi * q)) / 2,
    "1-sqrt": lambda q: 1 - math.sqrt(q),
}
W = Duration(7)
CASES = {
    "constant": (ConstantConfig(W), lambda s: warm(s, 7)),
    "constant, no warm-up": (ConstantConfig(), lambda s: 1.0),
    "linear": (LinearConfig(W, 0.2), lambda s: warm(s, 7) * decayed(s, 7, 0.2, SHAPES["linear"])),
    "linear to zero, no warm-up": (
        LinearConfig(Duration(0), 0.0),
        lambda s: decayed(s, 0, 0, SHAPES["linear"]),
    ),
    "cosine": (
        CosineConfig(Duration("14%"), 0.1),
        lambda s: warm(s, 7) * decayed(s, 7, 0.1, SHAPES["cosine"]),
    ),
    "inverse_sqrt": (
        InverseSqrtConfig(W),
        lambda s: math.sqrt(7) * min((s + 1) ** -0.5, (s + 1) * 7**-1.5),
    ),
    "inverse_sqrt, longer than the run": (
        InverseSqrtConfig(Duration(80)),
        lambda s: (s + 1) / 80,
    ),
}
for name in SHAPES:
    CASES[f"wsd {name}"] = (
        WSDConfig(W, Duration("20%"), name, 0.1),
        lambda s, n=name: warm(s, 7) * decayed(s, 40, 0.1, SHAPES[n]),
    )


@pytest.mark.parametrize("case", CASES)
def test_closed_form_at_every_step(case: str):
    """Fails if a border is one step off, or the decay starts or ends elsewhere."""
    config, closed_form = CASES[case]
    # Two steps past the end: training.steps may be raised while the last decay is at its end.
    steps = np.arange(TOTAL + 2)
    got = np.asarray(jax.jit(build(config))(jnp.asarray(steps, jnp.int32)))
    assert got.dtype == np.float32
    # float32 of float64, with a cosine or a power: 5e-8 seen.
    np.testing.assert_allclose(got, [closed_form(s) for s in steps], rtol=2e-6, atol=2e-7)
    assert got.min() >= 0
    assert got.max() <= 1


def test_every_kind_is_covered():
    """Fails if a schedule is added without a closed form."""
    assert {type(config) for config, _ in CASES.values()} == set(SCHEDULES.values())


def test_borders():
    """Fails if the first update is wasted, the peak is missed, or the last update is wasted."""
    factor = build(WSDConfig(Duration(4), Duration(10), "linear", 0.0))
    assert factor(0) == 0.25
    assert factor(3) == factor(39) == factor(40) == 1
    assert factor(TOTAL - 1) == pytest.approx(0.1)
    assert factor(TOTAL) == 0


@pytest.mark.parametrize(
    ("config", "step", "unchanged"),
    [
        (ConstantConfig(W), 50, True),
        (ConstantConfig(Duration("10%")), 3, False),
        (WSDConfig(W, Duration(10)), 41, True),
        (WSDConfig(W, Duration(10)), 42, False),
        (InverseSqrtConfig(W), 50, True),
        (CosineConfig(W), 7, True),
        (CosineConfig(W), 9, False),
        (LinearConfig(W), 50, False),
    ],
)
def test_a_longer_run_with_the_same_past(config, step: int, unchanged: bool):
    """Fails if a run may be extended although it has trained on another schedule, or may not."""
    assert unchanged_until(step, build(config), build(config, 80)) == unchanged


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LinearConfig(Duration(51)), "schedule.warmup"),
        (WSDConfig(Duration(45), Duration("20%")), "warm-up of 45 steps"),
    ],
)
def test_what_does_not_fit_is_refused(config, words: str):
    """Fails if a warm-up or a decay is cut short without a word."""
    with pytest.raises(RequestError, match=words):
        build(config)


def test_fractions_are_checked():
    """Fails if a schedule may rise above its peak."""
    with pytest.raises(RequestError, match=r"final_fraction=1\.5"):
        dataclasses.replace(CosineConfig(), final_fraction=1.5)
