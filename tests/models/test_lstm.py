"""Laws of the LSTM language model: who influences whom, packing, carried state, dropout."""

import functools
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError, static, traced
from ablax.models.lstm import LstmConfig, LstmLanguageModel

V, B, T = 12, 2, 6
WIDTH, HIDDEN = 5, 7
PLAIN = LstmConfig(num_layers=2, width=WIDTH, hidden_width=HIDDEN, layer_norm=True)
RATES = ("dropout_embedding", "dropout_input", "dropout_hidden", "dropout_output", "weight_drop")
DROPPED = LstmConfig(
    num_layers=2,
    width=WIDTH,
    hidden_width=HIDDEN,
    tied_embeddings=True,
    **dict.fromkeys(RATES, 0.5),
)

# Row 0 is one document; row 1 holds two and ends in padding. All tokens differ, so that a row of the embedding table
# stands for one place of the batch.
TOKENS = jnp.arange(B * T, dtype=jnp.int32).reshape(B, T)
POINTS = jnp.asarray([[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 0]], jnp.int32)
SEGMENTS = jnp.asarray([[1] * 6, [1, 1, 1, 2, 2, 0]], jnp.int32)
BATCH = TOKENS, POINTS, SEGMENTS

# float32: two programs that sum a few terms near 1 in different orders.
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)


def hyper_of(config: LstmConfig, **others: float) -> dict[str, Any]:
    return jax.tree.map(jnp.float32, traced(config) | others)


def build(config: LstmConfig) -> LstmLanguageModel:
    """Built from the static config: a traced knob that leaks into the program makes it nan."""
    return static(config).build(V, T)


def shapes_of(config: LstmConfig) -> Any:
    return jax.eval_shape(
        lambda key: build(config).init(key, *BATCH, hyper=hyper_of(config)), jax.random.key(0)
    )["params"]


def random_params(config: LstmConfig) -> Any:
    """Parameters far from their initial values, without compiling: no bias is zero, no scale is one."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), s.dtype), shapes_of(config)
    )


PARAMS = random_params(PLAIN)


@jax.jit
def run(tokens, positions, segments, carry):
    return build(PLAIN).apply(
        {"params": PARAMS}, tokens, positions, segments, hyper=hyper_of(PLAIN), carry=carry
    )


def zeros() -> Any:
    return build(PLAIN).init_carry(B)


def random_carry() -> Any:
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda z: jnp.asarray(rng.normal(size=z.shape), z.dtype), zeros())


def test_causality_by_gradient():
    """Catches: a reversed scan, a state that crosses documents or rows, padding that feeds the state."""
    mix = jnp.asarray(np.random.default_rng(1).normal(size=V), jnp.float32)

    @jax.jit
    @jax.jacrev
    def jacobian(embedding):
        params = {**PARAMS, "embedding": embedding}
        logits, _ = build(PLAIN).apply({"params": params}, *BATCH, hyper=hyper_of(PLAIN))
        return logits.reshape(B * T, V) @ mix

    influence = np.abs(jacobian(PARAMS["embedding"])).sum(-1)
    row, place = np.divmod(np.arange(B * T), T)
    segments = np.asarray(SEGMENTS).ravel()
    same = (row[:, None] == row) & (segments[:, None] == segments)
    real = segments != 0
    np.testing.assert_array_equal(
        influence[real] > 0, (same & (place[:, None] >= place) & real)[real]
    )


def test_packed_equals_unpacked():
    """Catches: a reset that clears h but not c, or that also clears the first step's own input."""
    packed, _ = run(*BATCH, zeros())
    first = [[6, 7, 8, 0, 0, 0], [0, 1, 2, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    second = [[9, 10, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    alone, _ = run(*(jnp.asarray(rows, jnp.int32) for rows in zip(first, second)), zeros())
    close(alone[0, :3], packed[1, :3])
    close(alone[1, :2], packed[1, 3:5])


def test_carried_state_and_padding():
    """Two windows, each padded behind, equal one long one. Catches: padding that updates or resets the state."""
    always = jnp.ones((B, T), jnp.int32)
    positions = jnp.tile(jnp.arange(1, T + 1)[None], (B, 1))
    start = random_carry()
    whole, last = run(TOKENS, positions, always, start)

    def window(part: slice, carry: Any) -> Any:
        cut = (jnp.pad(x[:, part], ((0, 0), (0, T - 3))) for x in (TOKENS, positions, always))
        return run(*cut, carry)

    left, middle = window(slice(0, 3), start)
    right, end = window(slice(3, 6), middle)
    close(jnp.concatenate([left[:, :3], right[:, :3]], 1), whole)
    jax.tree.map(close, end, last)


def test_decoding_equals_full_forward():
    """Catches: a carry that is returned before the last step, or layers' states in another order."""
    full, last = run(*BATCH, zeros())
    carry = build(PLAIN).init_cache(B, T)
    for t in range(T):
        logits, carry = run(*(x[:, t : t + 1] for x in BATCH), carry)
        close(logits[:, 0], full[:, t])
    jax.tree.map(close, carry, last)


def test_dropout_rates_are_traced_and_each_acts():
    """Catches: a rate that is a constant of the program (nan here), or read from another's knob."""
    params = random_params(DROPPED)

    def forward(hyper, train, rngs=None):
        return build(DROPPED).apply({"params": params}, *BATCH, hyper=hyper, train=train, rngs=rngs)

    @jax.jit
    def train(hyper):
        return forward(hyper, True, {"dropout": jax.random.key(0)})[0]

    def rates(**on):
        return train(hyper_of(DROPPED, **(dict.fromkeys(RATES, 0.0) | on)))

    nothing_dropped = rates()
    close(nothing_dropped, jax.jit(lambda h: forward(h, False)[0])(hyper_of(DROPPED)))
    dropped = {name: np.asarray(rates(**{name: 0.5})) for name in RATES}
    assert train._cache_size() == 1
    for name, logits in dropped.items():
        assert np.isfinite(logits).all()
        assert (np.abs(logits - nothing_dropped) > 1e-3).any(), name
    # Recurrent weights only: what starts from a zero state does not see them.
    starts = np.asarray(POINTS == 0) & np.asarray(SEGMENTS != 0)
    difference = np.abs(dropped["weight_drop"] - nothing_dropped).max(-1)
    assert (difference[starts] < 1e-6).all()
    assert (difference[:, 1:3] > 1e-3).all()


def test_zero_rates_use_no_rng():
    """Catches: a mask that is drawn though its rate is zero."""
    off = PLAIN.build(V, T)
    params = {"params": PARAMS}
    jax.eval_shape(lambda: off.apply(params, *BATCH, hyper=hyper_of(PLAIN), train=True))
    for name in RATES:
        config = LstmConfig(num_layers=2, width=WIDTH, hidden_width=HIDDEN, **{name: 0.5})
        module, hyper = build(config), hyper_of(config)
        with pytest.raises(flax.errors.InvalidRngError):
            jax.eval_shape(lambda m=module, h=hyper: m.apply(params, *BATCH, hyper=h, train=True))


def test_masks_are_constant_over_time():
    """Catches: a mask of its own for each time step, one for all rows, a missing 1 / (1 - rate) or one in bfloat16."""

    def drop(x, rate):
        config = LstmConfig(dropout_hidden=rate)
        return build(config).apply(
            {},
            x,
            "hidden",
            hyper_of(config),
            True,
            rngs={"dropout": jax.random.key(0)},
            method=LstmLanguageModel._drop,
        )

    masked = np.asarray(drop(jnp.ones((3, B, 500)), 0.75))
    np.testing.assert_array_equal(masked, np.broadcast_to(masked[:1], masked.shape))
    assert (masked[0, 0] != masked[0, 1]).any()
    assert set(np.unique(masked)) == {0.0, 4.0}
    # 1000 draws: 0.25 with a standard error of 0.014.
    assert abs((masked[0] > 0).mean() - 0.25) < 0.06
    x = jax.random.uniform(jax.random.key(1), (50, B, 500), jnp.bfloat16, 1, 2)
    y = drop(x, 0.1).astype(jnp.float32)
    kept = jnp.where(y == 0, 0, x.astype(jnp.float32))
    # Roundings of 2^-8 / sqrt(12) each, over 45,000 of them: 1e-5; a rounded scale is 2e-3 off.
    assert float(y.sum() / kept.sum()) == pytest.approx(1 / 0.9, rel=2e-4)


def test_whole_words_lose_their_embedding():
    """Catches: single places or single features dropped instead of words."""
    config = LstmConfig(dropout_embedding=0.5)
    tokens = jnp.tile(jnp.arange(V, dtype=jnp.int32)[None], (4, 1))
    x = build(config).apply(
        {},
        jnp.ones((V, WIDTH)),
        tokens,
        hyper_of(config),
        True,
        rngs={"dropout": jax.random.key(0)},
        method=LstmLanguageModel._embed,
    )
    x = np.asarray(x)
    np.testing.assert_array_equal(x, np.broadcast_to(x[:1, :, :1], x.shape))
    assert set(np.unique(x)) == {0.0, 2.0}


def test_initial_values():
    """Catches: init_scale or forget_bias as a constant, or the bias on another gate than f (the second)."""
    config = LstmConfig(num_layers=1, width=WIDTH)

    @jax.jit
    def init(hyper):
        return build(config).init(jax.random.key(0), *BATCH, hyper=hyper)["params"]

    for scale, forget_bias in ((0.05, 1.0), (0.5, -2.0)):
        params = init(hyper_of(config, init_scale=scale, forget_bias=forget_bias))
        for kernel in (params["embedding"], params["head_kernel"], *params["lstm_0"].values()):
            if kernel.ndim == 2:
                assert 0.8 * scale < np.abs(kernel).max() <= scale
                assert kernel.min() < 0 < kernel.max()
        bias = np.asarray(params["lstm_0"]["bias"]).reshape(4, WIDTH)
        np.testing.assert_array_equal(bias, np.outer([0, forget_bias, 0, 0], np.ones(WIDTH)))
    assert init._cache_size() == 1


def test_tied_embeddings_narrow_the_last_layer():
    """Catches: a head of its own beside a tied one, or widths in reverse."""
    tied = shapes_of(DROPPED)
    assert "head_kernel" not in tied
    assert tied["lstm_0"]["kernel_recurrent"].shape == (HIDDEN, 4 * HIDDEN)
    assert tied["lstm_1"]["kernel_input"].shape == (HIDDEN, 4 * WIDTH)
    assert shapes_of(PLAIN)["head_kernel"].shape == (HIDDEN, V)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_layers": 0},
        {"hidden_width": 0},
        {"unroll": 0},
        {"dropout_input": 1.0},
        {"weight_drop": -0.1},
        {"init_scale": 0.0},
    ],
)
def test_wrong_values_are_named(wrong):
    (name,) = wrong
    with pytest.raises(RequestError, match=name):
        LstmConfig(**wrong)


def test_presets_have_the_papers_sizes():
    """Parameters over 10,000 words: Zaremba's medium and large as TensorFlow's tutorial counts them, Merity's 24 M."""

    def millions(name: str) -> float:
        config = LstmConfig(**LstmConfig.PRESETS[name])
        module = static(config).build(10_000, 35)
        shapes = jax.eval_shape(
            lambda key: module.init(key, *BATCH, hyper=hyper_of(config)), jax.random.key(0)
        )
        return sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6

    assert [round(millions(name), 1) for name in ("small", "large", "awd")] == [19.8, 66.0, 24.2]
    assert millions("tiny") < 2
