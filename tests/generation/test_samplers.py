"""Laws of the samplers."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.generation import samplers
from ablax.generation.samplers import Sampling, choose, row_keys, shape_logits

SETTINGS = {
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 7},
    "top_k_beyond_v": {"top_k": 99},
    "top_p": {"top_p": 0.6},
    "top_p_tiny": {"top_p": 1e-6},
    "min_p": {"min_p": 0.2},
    "min_p_one": {"min_p": 1.0},
    "repetition": {"repetition_penalty": 1.3},
    "encouraged": {"repetition_penalty": 0.5},
    "all": {
        "temperature": 1.4,
        "top_k": 9,
        "top_p": 0.8,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
    },
}


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 30)).astype(np.float32) * 3
    history = rng.integers(0, 30, (5, 6))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, history, True, axis=1)
    return logits, history, seen


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_equals_transformers(setting, drawn):
    """Catches: temperature after top-p, a negative logit divided, top-p without its last token."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        process = pytest.importorskip("transformers.generation.logits_process")
    logits, history, seen = drawn
    makers = {
        "repetition_penalty": process.RepetitionPenaltyLogitsProcessor,
        "temperature": process.TemperatureLogitsWarper,
        "top_k": process.TopKLogitsWarper,
        "top_p": process.TopPLogitsWarper,
        "min_p": process.MinPLogitsWarper,
    }
    expected = torch.tensor(logits)
    for name, maker in makers.items():  # the order of transformers' generate
        if name in setting:
            expected = maker(setting[name])(torch.tensor(history), expected)
    got = shape_logits(jnp.asarray(logits), jnp.asarray(seen), Sampling(**setting).controls())
    np.testing.assert_array_equal(np.isinf(got), np.isinf(expected.numpy()))
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-6)  # one rounding per division


def test_the_largest_are_found_exactly_at_any_scale():
    """Catches: a bisection that overflows, stops early or orders negative numbers the wrong way."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=2000) * 10.0 ** rng.uniform(-35, 35, 2000)
    logits[:4] = 0.0, -0.0, np.finfo(np.float32).max, -np.inf
    logits[4:8] = 1 + np.arange(4) * np.finfo(np.float32).eps  # neighbours
    logits = logits.astype(np.float32)
    larger = (logits > logits[7]).sum()
    keep = jax.jit(samplers.top_k)
    for k in (1, 2, 3, 700, 1998, *range(larger, larger + 5)):
        kept = np.isfinite(keep(logits[None], np.int32(k))[0])
        np.testing.assert_array_equal(kept, logits >= np.sort(logits)[-k])


def test_settings_per_row_are_those_of_single_rows(drawn):
    """Catches: a control of one row used for all."""
    logits = jnp.asarray(drawn[0])
    ks, ps = np.array([1, 2, 5, 9, 30]), np.array([0.1, 0.3, 0.5, 0.9, 1.0], np.float32)
    for function, values in ((samplers.top_k, ks), (samplers.top_p, ps), (samplers.min_p, ps)):
        together, alone = function(logits, values), jax.jit(function)
        for row, value in enumerate(values):
            np.testing.assert_array_equal(together[row], alone(logits[row : row + 1], value)[0])


def test_draws_follow_the_distribution():
    """Catches: one key for all rows, logits sampled before the temperature."""
    rows = 20_000
    logits = jnp.broadcast_to(jnp.array([1.0, 0.0, -1.0, 2.0]), (rows, 4))
    keys = row_keys(3, np.arange(rows), np.zeros(rows))
    tokens, log_probs = jax.jit(choose)(logits, None, keys, Sampling(temperature=2.0).controls())
    expected = np.asarray(jax.nn.softmax(logits[0] / 2))
    found = np.bincount(tokens, minlength=4) / rows
    # Five standard errors of a share of 20,000 draws.
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(0.25 / rows))
    model = np.asarray(jax.nn.log_softmax(logits[0]))
    np.testing.assert_allclose(log_probs, model[np.asarray(tokens)], rtol=1e-6)  # float32


def test_a_rows_draw_does_not_depend_on_its_neighbours(drawn):
    """Catches: one categorical over the whole batch."""
    logits, controls = jnp.asarray(drawn[0]), Sampling(top_p=0.9).controls()
    keys = row_keys(0, np.arange(5), np.array([0, 1, 0, 1, 0]))
    draw = jax.jit(choose)
    together = draw(logits, None, keys, controls)[0]
    alone = [draw(logits[r : r + 1], None, keys[r : r + 1], controls)[0][0] for r in range(5)]
    np.testing.assert_array_equal(together, alone)


def test_temperature_zero_takes_the_likeliest_after_the_penalty():
    """Catches: greedy that ignores the repetition penalty."""
    logits = jnp.array([[2.0, 1.9, 0.0]])
    seen = jnp.array([[True, False, False]])
    keys = row_keys(0, np.zeros(1), np.zeros(1))
    for penalty, expected in ((1.0, 0), (1.5, 1)):
        controls = Sampling(temperature=0, repetition_penalty=penalty, top_k=1).controls()
        assert choose(logits, seen, keys, controls)[0].tolist() == [expected]


def test_other_values_of_the_same_steps_share_one_program(drawn):
    """Catches: a value that is a constant of the program."""
    program = jax.jit(choose)
    before = program._cache_size()
    keys = row_keys(0, np.arange(5), np.zeros(5))
    for temperature, k, p in ((0.5, 3, 0.9), (2.0, 7, 0.5), (1.1, 2, 0.2)):
        sampling = Sampling(temperature=temperature, top_k=k, top_p=p)
        program(jnp.asarray(drawn[0]), None, keys, sampling.controls())
    assert program._cache_size() == before + 1


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
    ],
)
def test_values_out_of_range_are_refused_by_name(values):
    """Catches: a check that is missing or names another field."""
    (name,) = values
    with pytest.raises(RequestError, match=f"{name}=.* must be"):
        Sampling(**values)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed):
    """Catches: a seed that wraps around to another one."""
    with pytest.raises(RequestError, match="seed="):
        row_keys(seed, np.zeros(1), np.zeros(1))
