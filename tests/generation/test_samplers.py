"""Laws of the samplers."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.generation import samplers
from ablax.generation.samplers import History, choose, narrow, penalise, row_keys
from ablax.generation.sampling import Controls, Sampling

NOTHING = History(None, None)
ENDS = (3, 4)

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
    "typical": {"typical_p": 0.3},
    "typical_most": {"typical_p": 0.9},
    "biased": {"logit_bias": {0: 3.5, 29: -2.0, 4: 1.0}},
    "not_yet": {"min_new_tokens": 3},
    "long_enough": {"min_new_tokens": 2},
    "all": {
        "logit_bias": {7: 2.0},
        "min_new_tokens": 3,
        "typical_p": 0.9,
        "temperature": 1.4,
        "top_k": 9,
        "top_p": 0.8,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
    },
}


# The order of transformers' generate.
ORDER = (
    "logit_bias",
    "repetition_penalty",
    "min_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
)


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
        "logit_bias": lambda bias: process.SequenceBiasLogitsProcessor(
            {(token,): value for token, value in bias.items()}
        ),
        "min_new_tokens": lambda least: process.MinNewTokensLengthLogitsProcessor(
            prompt_length_to_skip=4, min_new_tokens=least, eos_token_id=list(ENDS)
        ),
        "repetition_penalty": process.RepetitionPenaltyLogitsProcessor,
        "temperature": process.TemperatureLogitsWarper,
        "top_k": process.TopKLogitsWarper,
        "top_p": process.TopPLogitsWarper,
        "min_p": process.MinPLogitsWarper,
        "typical_p": process.TypicalLogitsWarper,
    }
    makers = {name: makers[name] for name in ORDER}
    expected = torch.tensor(logits)
    for name, maker in makers.items():
        if name in setting:
            expected = maker(setting[name])(torch.tensor(history), expected)
    controls = Sampling(**setting).controls(ENDS)
    got = penalise(jnp.asarray(logits), History(jnp.asarray(seen), None), 2, controls)
    got = narrow(got, controls)
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
    chosen = (samplers.top_k, ks), (samplers.top_p, ps), (samplers.min_p, ps)
    for function, values in (*chosen, (samplers.typical_p, ps)):
        together, alone = function(logits, values), jax.jit(function)
        for row, value in enumerate(values):
            np.testing.assert_array_equal(together[row], alone(logits[row : row + 1], value)[0])


def test_draws_follow_the_distribution():
    """Catches: one key for all rows, logits sampled before the temperature."""
    rows = 20_000
    logits = jnp.broadcast_to(jnp.array([1.0, 0.0, -1.0, 2.0]), (rows, 4))
    keys = row_keys(3, np.arange(rows), np.zeros(rows))
    controls = Sampling(temperature=2.0).controls()
    chosen = jax.jit(choose)(logits, NOTHING, keys, 0, controls)
    tokens, log_probs = np.asarray(chosen.tokens), chosen.log_probs
    expected = np.asarray(jax.nn.softmax(logits[0] / 2))
    found = np.bincount(tokens, minlength=4) / rows
    # Five standard errors of a share of 20,000 draws.
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(0.25 / rows))
    model = np.asarray(jax.nn.log_softmax(logits[0]))
    np.testing.assert_allclose(log_probs, model[tokens], rtol=1e-6)  # float32


def test_a_rows_draw_does_not_depend_on_its_neighbours(drawn):
    """Catches: one categorical over the whole batch."""
    logits, controls = jnp.asarray(drawn[0]), Sampling(top_p=0.9).controls()
    keys = row_keys(0, np.arange(5), np.array([0, 1, 0, 1, 0]))
    draw = jax.jit(choose)
    together = draw(logits, NOTHING, keys, 0, controls).tokens
    alone = [
        draw(logits[r : r + 1], NOTHING, keys[r : r + 1], 0, controls).tokens[0] for r in range(5)
    ]
    np.testing.assert_array_equal(together, alone)


def test_temperature_zero_takes_the_likeliest_after_the_penalty():
    """Catches: greedy that ignores the repetition penalty."""
    logits = jnp.array([[2.0, 1.9, 0.0]])
    seen = jnp.array([[True, False, False]])
    keys = row_keys(0, np.zeros(1), np.zeros(1))
    for penalty, expected in ((1.0, 0), (1.5, 1)):
        controls = Sampling(temperature=0, repetition_penalty=penalty, top_k=1).controls()
        history = History(seen, None)
        assert choose(logits, history, keys, 0, controls).tokens.tolist() == [expected]


def test_other_values_of_the_same_steps_share_one_program(drawn):
    """Catches: a value that is a constant of the program."""
    program = jax.jit(choose)
    before = program._cache_size()
    keys = row_keys(0, np.arange(5), np.zeros(5))
    for temperature, k, p in ((0.5, 3, 0.9), (2.0, 7, 0.5), (1.1, 2, 0.2)):
        bias = dict.fromkeys(range(k, k + 2), p)
        sampling = Sampling(temperature=temperature, top_k=k, top_p=p, logit_bias=bias)
        program(jnp.asarray(drawn[0]), NOTHING, keys, 0, sampling.controls([k]))
    assert program._cache_size() == before + 1


def test_penalties_by_count_are_those_of_the_definition(drawn):
    """Catches: presence for each occurrence, a frequency that is divided by the length, tokens of the prompt."""
    logits, history, _ = drawn
    controls = Sampling(frequency_penalty=0.3, presence_penalty=-0.5).controls()
    known = History.of(jnp.asarray(history), jnp.ones(history.shape, bool), 30, controls.steps)
    active = jnp.array([True, True, False, True, True])
    for tokens in ([1, 2, 3, 4, 29], [1, 2, 3, 5, 29], [1, 0, 3, 4, 29]):
        known = known.add(jnp.array(tokens), active)
    expected = logits.copy()
    generated = {0: {1: 3}, 1: {2: 2, 0: 1}, 2: {}, 3: {4: 2, 5: 1}, 4: {29: 3}}
    for row, counts in generated.items():
        for token, count in counts.items():
            expected[row, token] -= 0.3 * count - 0.5
    got = penalise(jnp.asarray(logits), known, 3, controls)
    np.testing.assert_allclose(got, expected, atol=1e-6)  # float32 of 0.3 x 3


def test_typical_tokens_are_those_near_the_entropy():
    """Of tokens with 0.5, 0.2, 0.2 and 0.1 (surprise 0.69, 1.61, 1.61, 2.30; entropy 1.22) the middle ones are typical,
    then the likeliest. Catches: the entropy's sign, the likeliest kept first."""
    logits = jnp.log(jnp.array([[0.5, 0.2, 0.2, 0.1]]))
    for p, kept in ((0.1, [1, 2]), (0.39, [1, 2]), (0.45, [0, 1, 2]), (0.95, [0, 1, 2, 3])):
        assert np.flatnonzero(np.isfinite(samplers.typical_p(logits, p)[0])).tolist() == kept


def test_settings_that_are_off_change_nothing(drawn):
    """A row's program may contain steps of its neighbours. Catches: a probability of one that the sum never reaches,
    k of zero that keeps one token."""
    logits, history, _ = drawn
    logits = logits * np.array([1, 20, 1, 1, 1], np.float32)[:, None]  # a row of sums that round
    all_on = Sampling(
        temperature=0.5,
        top_k=3,
        top_p=0.5,
        min_p=0.5,
        typical_p=0.5,
        repetition_penalty=2.0,
        presence_penalty=1.0,
        logit_bias={1: 1.0},
        min_new_tokens=9,
    ).controls(ENDS)
    rows = Controls.stack([all_on, *[Sampling().controls()] * 4])
    known = History.of(jnp.asarray(history), jnp.ones(history.shape, bool), 30, rows.steps)
    known = known.add(jnp.asarray(history[:, 0]), jnp.ones(5, bool))
    got = narrow(penalise(jnp.asarray(logits), known, 1, rows), rows)
    np.testing.assert_array_equal(got[1:], logits[1:])
    assert np.isfinite(got[0]).sum() < 4


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed):
    """Catches: a seed that wraps around to another one."""
    with pytest.raises(RequestError, match="seed="):
        row_keys(seed, np.zeros(1), np.zeros(1))
