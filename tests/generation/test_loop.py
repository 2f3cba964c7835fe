"""Laws of decoding: cache, compiled loop, rows, chunks and <eos>."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.generation.beams import Beams
from ablax.generation.decoders import (
    NeuralDecoder,
    NgramDecoder,
    Prompts,
    RecomputingStepper,
    stepper,
)
from ablax.generation.loop import CHUNK, Compiled
from ablax.generation.samplers import row_keys
from ablax.generation.sampling import Controls, Sampling
from ablax.generation.steps import bucket, history_of
from ablax.generation.stepwise import Stepwise
from ablax.models.cache import write_layer
from ablax.models.ngram import NgramConfig
from ablax.models.transformer import DecoderConfig
from tiny_models import build

PROMPTS = [[5, 6, 7, 8, 9, 10], [4], [11, 12, 4]]
NEW = 24
GREEDY = Sampling(temperature=0).controls()
PENALISED = Sampling(temperature=1.3, repetition_penalty=3.0)
MIXED = PENALISED.controls()


def keys(rows=3):
    return row_keys(7, np.arange(rows), np.zeros(rows))


def engine(model):
    return Compiled(model.module, model.params, model.hyper, vocab_size=17, max_length=64)


@pytest.fixture(scope="module")
def sampled(mean):
    return engine(mean).decode(PROMPTS, keys(), MIXED, NEW)


def full_forward(model, prompts, new):
    """Greedy continuation, without cache or padding on the left, and log-probabilities."""
    tokens, log_probs = np.zeros((len(prompts), new), int), np.zeros((len(prompts), new))
    for row, prompt in enumerate(prompts):
        text = list(prompt)
        for index in range(new):
            following = model.log_probs(text)[-1]
            text.append(int(following.argmax()))
            tokens[row, index], log_probs[row, index] = text[-1], following.max()
    return tokens, log_probs


@pytest.mark.parametrize("family", ["decoder", "lstm"])
def test_cached_decoding_is_the_full_forward_pass(family, request):
    """Catches: positions that count a shorter prompt's padding, holes that are attended to or reset a state."""
    model = request.getfixturevalue(family)
    decoded = engine(model).decode(PROMPTS, keys(), GREEDY, NEW)
    tokens, log_probs = full_forward(model, PROMPTS, NEW)
    np.testing.assert_array_equal(decoded.tokens[:, :NEW], tokens)
    # Sums in another order: float32 rounding of logits of tens, 2e-5 seen.
    np.testing.assert_allclose(decoded.log_probs[:, :NEW], log_probs, atol=1e-4)
    assert decoded.counts.tolist() == [NEW] * 3
    assert len(np.unique(tokens)) > 3  # a model that always says the same would prove nothing


class Plain(nn.Module):
    """A module without a cache."""

    inner: nn.Module

    def __call__(self, tokens, positions, segment_ids, *, hyper, carry=(), train=False):
        return self.inner(tokens, positions, segment_ids, hyper=hyper, train=train)


@pytest.fixture(scope="module")
def windowed():
    """Its windows are shorter than the texts."""
    return build(
        DecoderConfig(num_layers=2, width=16, num_heads=2, unroll=1, attention_pattern=(4, 3))
    )


def test_a_cache_of_the_window_equals_no_cache(windowed):
    """Catches: padding that pushes out tokens, a slot that is written too early, keys of a prompt that only its last
    columns see, rings that do not follow their beams."""
    model, plain = windowed, Plain(windowed.module)
    empty = stepper(model.module).empty(3, 40)
    assert empty.key.shape[2] == empty.length == 4
    recomputed = Compiled(plain, {"inner": model.params}, model.hyper, 17)
    found = engine(model).decode(PROMPTS, keys(), MIXED, NEW)
    expected = recomputed.decode(PROMPTS, keys(), MIXED, NEW)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    # Sums in another order: float32 rounding of logits of tens.
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-4)
    one, other = (e.search(PROMPTS, GREEDY, 9, Beams(3)) for e in (engine(model), recomputed))
    np.testing.assert_array_equal(one.tokens, other.tokens)


def test_the_caches_dtype_is_the_callers(windowed, mean):
    """Catches: a dtype that is not passed on, attention that computes in the cache's dtype."""
    model, narrow = windowed, dataclasses.replace(engine(windowed), cache_dtype="bfloat16")
    cache = stepper(model.module, "bfloat16").empty(1, 9)
    assert cache.key.dtype == jnp.bfloat16
    new, layer = jnp.ones((1, 1, 2, 8)), jnp.zeros((), jnp.int32)
    stored, seen = write_layer(cache.key, new, layer, cache.slots)
    assert (stored.dtype, seen.dtype) == (jnp.bfloat16, jnp.float32)
    exact = engine(model).decode(PROMPTS, keys(), GREEDY, NEW)
    rounded = narrow.decode(PROMPTS, keys(), GREEDY, NEW)
    for row in range(3):  # as long as the texts agree
        same = int(np.logical_and.accumulate(exact.tokens[row] == rounded.tokens[row]).sum())
        off = np.abs(exact.log_probs[row, :same] - rounded.log_probs[row, :same]).max()
        assert same > 2
        assert 1e-4 < off < 0.5  # logits of tens, keys and values with 8 bits
    with pytest.raises(RequestError, match="cache_dtype=float16 must be float32 or bfloat16"):
        stepper(model.module, "float16")
    with pytest.raises(RequestError, match="which this model does not keep"):
        stepper(mean.module, "bfloat16")


def test_recomputing_equals_the_cache(mean, sampled):
    """Catches: logits of the buffer's last column instead of the text's."""
    plain = Plain(mean.module)
    assert isinstance(stepper(plain), RecomputingStepper)
    params = {"inner": mean.params}
    decoded = Compiled(plain, params, mean.hyper, 17).decode(PROMPTS, keys(), MIXED, NEW)
    np.testing.assert_array_equal(decoded.tokens, sampled.tokens)


def test_compiled_loop_equals_the_steps_one_by_one(mean, sampled):
    """Catches: a key folded twice, a penalty that forgets the prompt, life after <eos>."""
    steps = NeuralDecoder(mean.module, mean.params, mean.hyper)
    eos = int(sampled.tokens[0, 5])
    compiled = engine(mean).decode(PROMPTS, keys(), PENALISED.controls([eos]), NEW)
    stepwise = Stepwise(steps).decode(PROMPTS, keys(), PENALISED.controls([eos]), NEW)
    np.testing.assert_array_equal(compiled.tokens[:, :NEW], stepwise.tokens)
    np.testing.assert_array_equal(compiled.counts, stepwise.counts)
    # The same steps in other programs: float32 rounding of logits of size ten.
    np.testing.assert_allclose(compiled.log_probs[:, :NEW], stepwise.log_probs, atol=2e-5)


def test_the_penalty_knows_all_of_the_prompt_and_no_padding():
    """Catches: the last token or a whole context forgotten, padding taken for token 0."""
    padded = Prompts.pad(PROMPTS, 4, 16)
    seen = history_of(padded, 17, ("repetition_penalty",)).seen
    assert seen is not None
    for row, prompt in enumerate(PROMPTS):
        assert set(np.flatnonzero(seen[row])) == set(prompt)


def test_rows_do_not_depend_on_their_neighbours(mean, sampled):
    """Catches: a key by place in the batch, padding that leaks from a longer prompt."""
    for row in range(3):
        alone = engine(mean).decode([PROMPTS[row]], keys()[row : row + 1], MIXED, NEW)
        np.testing.assert_array_equal(alone.tokens[0], sampled.tokens[row])


DIFFERENT = (
    Sampling(temperature=0, frequency_penalty=1.5, min_new_tokens=3, logit_bias={5: 2.0}),
    Sampling(top_p=0.8, typical_p=0.9, repetition_penalty=1.4),
    Sampling(temperature=0.7, top_k=3, min_p=0.05, presence_penalty=-0.5),
)
ENDS, LIMITS = ([2, 6], [], [7]), (9, NEW, 12)


def test_rows_of_different_settings_are_each_row_alone(mean):
    """Catches: a control, an end or a limit of one row for all, a step of one row that acts on another."""
    rows = [one.controls(ends) for one, ends in zip(DIFFERENT, ENDS)]
    together = engine(mean).decode(PROMPTS, keys(), Controls.stack(rows), LIMITS, alternatives=3)
    for row, controls in enumerate(rows):
        key, limit = keys()[row : row + 1], LIMITS[row]
        alone = engine(mean).decode([PROMPTS[row]], key, controls, limit, alternatives=3)
        count = int(together.counts[row])
        assert count == alone.counts[0]
        np.testing.assert_array_equal(together.tokens[row, :count], alone.tokens[0, :count])
    assert together.counts.max() <= NEW
    assert not set(together.tokens[0, :3]) & {2, 6}


def test_alternatives_are_the_models_likeliest(mean, sampled):
    """Catches: alternatives after temperature and penalties, of another place, or not in order."""
    decoded = engine(mean).decode(PROMPTS, keys(), MIXED, NEW, alternatives=4)
    np.testing.assert_array_equal(decoded.tokens, sampled.tokens)
    for row, prompt in enumerate(PROMPTS):
        text = [*prompt, *decoded.tokens[row, :NEW]]
        given = mean.log_probs(text)[len(prompt) - 1 : -1]
        best = np.argsort(-given, axis=-1)[:, :4]
        np.testing.assert_array_equal(decoded.top_tokens[row, :NEW, :4], best)
        np.testing.assert_allclose(
            decoded.top_log_probs[row, :NEW, :4],
            np.take_along_axis(given, best, axis=-1),
            atol=2e-5,  # float32 rounding of logits of size ten
        )


def test_a_prompt_is_read_as_in_a_forward_pass(mean):
    """Catches: the log-probability of another token, a shorter prompt's padding read as its text."""
    steps = NeuralDecoder(mean.module, mean.params, mean.hyper)
    for reader in (engine(mean), Stepwise(steps)):
        read = reader.read(PROMPTS, alternatives=2)
        assert read.counts.tolist() == [5, 0, 2]
        for row, prompt in enumerate(PROMPTS):
            given, count = mean.log_probs(prompt)[:-1], len(prompt) - 1
            np.testing.assert_array_equal(read.tokens[row, :count], prompt[1:])
            expected = given[np.arange(count), prompt[1:]]
            np.testing.assert_allclose(read.log_probs[row, :count], expected, atol=2e-5)
            best = np.argsort(-given, axis=-1)[:, :2]
            np.testing.assert_array_equal(read.top_tokens[row, :count, :2], best)


def test_chunks_equal_one_run(mean, sampled):
    """Catches: keys or the penalty's memory that start anew in each chunk."""
    looks = []

    def watch(decoded):
        looks.append(decoded.counts.copy())
        return np.array([True, False, False])

    decoded = engine(mean).decode(PROMPTS, keys(), MIXED, NEW, watch)
    np.testing.assert_array_equal(decoded.tokens[1:], sampled.tokens[1:])
    np.testing.assert_array_equal(decoded.tokens[0, :CHUNK], sampled.tokens[0, :CHUNK])
    assert decoded.counts.tolist() == [CHUNK, NEW, NEW]
    assert len(looks) == 1


def test_a_row_ends_with_its_eos(mean, sampled):
    """Catches: <eos> that is not counted, or ends the other rows too."""
    eos = int(sampled.tokens[1, 3])
    decoded = engine(mean).decode(PROMPTS, keys(), PENALISED.controls([eos]), NEW)
    for row, tokens in enumerate(sampled.tokens[:, :NEW]):
        found = np.flatnonzero(tokens == eos)
        count = found[0] + 1 if len(found) else NEW
        assert decoded.counts[row] == count
        np.testing.assert_array_equal(decoded.tokens[row, :count], tokens[:count])


def test_one_program_per_bucket(mean):
    """Catches: a program per prompt length, number of tokens or temperature."""
    from ablax.generation import loop

    size = loop._start._cache_size()
    for length, new, temperature in ((2, 5, 0.5), (9, 16, 0.7), (17, 3, 2.0)):
        controls = Sampling(temperature=temperature).controls()
        engine(mean).decode([[5] * length], keys(1), controls, new)
    assert loop._start._cache_size() == size + 1


def test_buckets_are_few_and_close():
    """Catches: a bucket that is too small, or doubles the work."""
    sizes = np.arange(1, 3000)
    buckets = np.array([bucket(int(size)) for size in sizes])
    assert bucket(0) == 0
    assert (buckets >= sizes).all()
    assert (buckets <= np.maximum(sizes * 1.25 + 1, sizes + 15)).all()
    assert len(np.unique(buckets)) < 40


@pytest.fixture(scope="module")
def ngram():
    text = np.array([4, 5, 6, 7, 4, 5, 6, 8, 9, 4, 5, 6, 7, 10] * 3)
    return NgramConfig(order=3).fit(text, np.array([0, 20, len(text)]), 17, 1, 2)


def test_ngram_decodes_its_own_conditionals(ngram):
    """Catches: a context cut at the wrong end, or not padded with -1."""
    prompts = [[1], [4, 5, 6, 8]]
    decoded = Stepwise(NgramDecoder(ngram)).decode(
        prompts, keys(2), Sampling(temperature=0).controls([2]), 12
    )
    for row, prompt in enumerate(prompts):
        text = list(prompt)
        for index in range(decoded.counts[row]):
            context = np.array([-1, -1, *text])[-2:]
            log_probs = ngram.log_probs(context[None])[0]
            assert decoded.tokens[row, index] == log_probs.argmax()
            np.testing.assert_allclose(
                decoded.log_probs[row, index], log_probs.max(), atol=1e-6
            )  # float32 of float64
            text.append(int(decoded.tokens[row, index]))


def test_ngram_never_samples_bos(ngram):
    """Catches: -inf turned into nan by a step."""
    decoded = Stepwise(NgramDecoder(ngram)).decode([[1]] * 8, keys(8), MIXED, 20)
    assert (decoded.tokens != 1).all()
    assert np.isfinite(decoded.log_probs).all()
