"""Laws of the Transformer: who influences whom, packing, caching, execution that changes nothing."""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError, static, traced
from ablax.models.attention import DotProductAttention
from ablax.models.feedforward import FEEDFORWARD, ExpertsConfig
from ablax.models.layers import ACTIVATIONS, GATED, NORMS
from ablax.models.positions import (
    POSITIONS,
    AlibiPositions,
    LearnedPositions,
    NoPositions,
    RotaryPositions,
    SinusoidalPositions,
    T5Positions,
)
from ablax.models.rotary_scaling import YarnScaling
from ablax.models.transformer import DecoderConfig, EncoderConfig, TransformerConfig

V, B, T, D, L = 24, 2, 6, 16, 2

# float32 values near 1, sums in another order: 7e-7 seen.
close = functools.partial(np.testing.assert_allclose, atol=5e-6)
SMALL: dict[str, Any] = {"num_layers": L, "width": D, "num_heads": 4, "feedforward_width": 20}

# Together: every position scheme, norm, placement and activation, grouped heads, windows, both head kinds.
VARIANTS: dict[str, TransformerConfig] = {
    "learned": DecoderConfig(**SMALL, tied_embeddings=False, bias=False, qkv_bias=True),
    "sinusoidal": DecoderConfig(
        **SMALL,
        tied_embeddings=False,
        positions=SinusoidalPositions(),
        attention_pattern=(3,),
        scale_embeddings=True,
        activation="relu",
    ),
    "rotary": DecoderConfig(
        **SMALL,
        tied_embeddings=False,
        positions=RotaryPositions(fraction=0.5),
        num_kv_heads=2,
        head_width=6,
        attention_pattern=(0, 2),
        norm="rmsnorm",
        activation="swiglu",
        query_key_norm=True,
    ),
    "alibi": DecoderConfig(
        **SMALL,
        tied_embeddings=False,
        positions=AlibiPositions(),
        num_kv_heads=1,
        attention_pattern=(2,),
        activation="geglu",
        attention=DotProductAttention(softcap=5.0),
        logit_softcap=10.0,
    ),
    "t5": DecoderConfig(
        **SMALL,
        tied_embeddings=False,
        positions=T5Positions(num_buckets=8, max_distance=12),
        norm_placement="post",
        activation="geglu_tanh",
        attention=DotProductAttention(scale=1.0),
    ),
    "none": DecoderConfig(**SMALL, tied_embeddings=False, positions=NoPositions(), head_bias=True),
    "parallel": DecoderConfig(
        **SMALL,
        tied_embeddings=False,
        positions=RotaryPositions(scaling=YarnScaling(factor=4.0, original_length=4)),
        parallel_residual=True,
        attention_out_bias=False,
        activation="silu",
    ),
    "experts": DecoderConfig(
        **SMALL,
        tied_embeddings=False,
        feedforward=ExpertsConfig(num_experts=4, capacity_factor=1.0),
        activation="swiglu",
    ),
    "encoder": EncoderConfig(
        **SMALL, tied_embeddings=False, attention_pattern=(2, 0), num_token_types=2
    ),
}
DECODERS = [name for name, config in VARIANTS.items() if config.CAUSAL]

# Row 0 is one document; row 1 holds two and ends in padding. All tokens differ, so that a row of the embedding table
# stands for one place of the batch.
TOKENS = jnp.arange(B * T, dtype=jnp.int32).reshape(B, T)
POINTS = jnp.asarray([[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 0]], jnp.int32)
SEGMENTS = jnp.asarray([[1] * 6, [1, 1, 1, 2, 2, 0]], jnp.int32)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """These programs run once; optimising them costs ten times what they do."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def hyper_of(config) -> dict[str, Any]:
    return jax.tree.map(jnp.float32, traced(config))


def random_params(config) -> Any:
    """Parameters far from their initial values, without compiling: no bias is zero, no scale is one."""
    module = static(config).build(V, T)
    shapes = jax.eval_shape(
        lambda key: module.init(key, TOKENS, POINTS, SEGMENTS, hyper=hyper_of(config)),
        jax.random.key(0),
    )["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), s.dtype), shapes)


class Built(NamedTuple):
    """One variant with its compiled forward pass (params, tokens, positions, segments, carry)."""

    config: TransformerConfig
    module: Any
    params: Any
    apply: Any


@functools.cache
def built(name: str) -> Built:
    config = VARIANTS[name]
    module = static(config).build(V, T)

    @jax.jit
    def apply(params, tokens, positions, segments, carry=()):
        return module.apply(
            {"params": params}, tokens, positions, segments, hyper=hyper_of(config), carry=carry
        )

    return Built(config, module, random_params(config), apply)


def may_attend(config: TransformerConfig, window: int) -> np.ndarray:
    """The rule, place by place over the whole batch: [B*T, B*T]."""
    row = np.repeat(np.arange(B), T)
    positions, segments = np.asarray(POINTS).ravel(), np.asarray(SEGMENTS).ravel()
    allowed = np.zeros((B * T, B * T), bool)
    for t, s in np.ndindex(B * T, B * T):
        distance = positions[t] - positions[s]
        same = row[t] == row[s] and segments[t] == segments[s] != 0
        order = distance >= 0 or not config.CAUSAL
        allowed[t, s] = same and order and abs(distance) < window
    return allowed


@pytest.mark.parametrize("name", VARIANTS)
def test_influence_is_exactly_what_the_masks_allow(name):
    """By gradient, of every logit with respect to every input of the batch.

    Covers causality, windows, packing, padding and independence of rows. Catches: `<` for `<=` in any of the rules,
    a window applied to the wrong layer, a segment rule that is dropped, a softmax over the wrong axis.
    """
    config, module, params, _ = built(name)
    direction = jax.random.normal(jax.random.key(1), (V,))

    @jax.jit
    def influence(params):
        def projected(table):
            replaced = {**params, "tokens": {"embedding": table}}
            logits, _ = module.apply(
                {"params": replaced}, TOKENS, POINTS, SEGMENTS, hyper=hyper_of(config)
            )
            return (logits @ direction).ravel()

        return jax.jacrev(projected)(params["tokens"]["embedding"])

    gradient = np.abs(influence(params)).max(-1)[:, : B * T]
    reach = np.eye(B * T, dtype=bool)
    for window in config.windows:
        reach = (may_attend(config, window) | np.eye(B * T, dtype=bool)) @ reach
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient > 0, reach)


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_equals_unpacked(name):
    """Catches: positions that count through the row, a bias or rotation of the slot instead of the position."""
    _, _, params, apply = built(name)
    packed, _ = apply(params, TOKENS, POINTS, SEGMENTS)
    alone = jnp.stack([jnp.roll(TOKENS[1], -3), TOKENS[0]])
    points = jnp.asarray([[0, 1, 0, 0, 0, 0], range(T)], jnp.int32)
    segments = jnp.asarray([[7, 7, 0, 0, 0, 0], [2] * T], jnp.int32)
    unpacked, carry = apply(params, alone, points, segments)
    assert carry == ()
    close(packed[1, 3:5], unpacked[0, :2])
    close(packed[0], unpacked[1])


@pytest.mark.parametrize("name", DECODERS)
def test_cached_decoding_equals_the_full_forward_pass(name):
    """Prompts of 3 and 2 tokens, right-padded, then 3 more tokens for both.

    Catches: a slot number used as a position, a hole that is attended to, keys stored before their rotation, the
    cache of one layer written to another, an index that does not move.
    """
    _, module, params, apply = built(name)
    points = jnp.arange(T, dtype=jnp.int32)[None].repeat(B, 0)
    full, _ = apply(params, TOKENS, points, jnp.ones_like(TOKENS))
    cache = module.init_cache(B, T)
    prompt, cache = apply(
        params,
        TOKENS[:, :3],
        jnp.asarray([[0, 1, 2], [0, 1, 0]], jnp.int32),
        jnp.asarray([[1, 1, 1], [1, 1, 0]], jnp.int32),
        cache,
    )
    tokens = jnp.stack([TOKENS[0, 3:], TOKENS[1, 2:5]])
    positions = jnp.asarray([[3, 4, 5], [2, 3, 4]], jnp.int32)
    more, cache = apply(params, tokens, positions, jnp.ones_like(tokens), cache)
    close(prompt[0], full[0, :3])
    close(prompt[1, :2], full[1, :2])
    close(more[0], full[0, 3:])
    close(more[1], full[1, 2:5])
    assert int(cache.index) == cache.length == T
    swapped = cache.rows(jnp.asarray([1, 0]))
    np.testing.assert_array_equal(swapped.key, cache.key[:, ::-1])
    np.testing.assert_array_equal(swapped.segment_ids, cache.segment_ids[::-1])


@pytest.mark.parametrize("cuts", [(1, 2, 3, 4, 5), (2, 5), (4, 5)], ids=str)
def test_a_ring_equals_the_full_forward_pass(cuts):
    """Several columns at once, whole rounds of the ring and more. Catches: new keys that overwrite what tokens written
    with them attend to, a slot beside its column's, columns that are kept in another order."""
    config = dataclasses.replace(VARIANTS["learned"], attention_pattern=(2, 3))
    module, params = static(config).build(V, T), random_params(config)

    @jax.jit
    def apply(tokens, positions, cache):
        segments = jnp.ones_like(tokens)
        hyper = hyper_of(config)
        return module.apply(
            {"params": params}, tokens, positions, segments, hyper=hyper, carry=cache
        )

    points = jnp.arange(T, dtype=jnp.int32)[None].repeat(B, 0)
    full, _ = apply(TOKENS, points, ())
    cache, parts = module.init_cache(B, T, ring=True), []
    assert cache.length == 3
    for start, end in itertools.pairwise((0, *cuts, T)):
        logits, cache = apply(TOKENS[:, start:end], points[:, start:end], cache)
        parts.append(logits)
    close(jnp.concatenate(parts, axis=1), full)
    assert int(cache.index) == T


DROPOUT = dataclasses.replace(
    VARIANTS["learned"],
    attention_pattern=(0, 2),
    embedding_dropout=0.2,
    attention_dropout=0.3,
    residual_dropout=0.2,
    mlp_dropout=0.1,
)


@functools.cache
def loss_and_gradient(**execution):
    """Of the dropout variant in training, with other execution knobs."""
    config = dataclasses.replace(DROPOUT, **execution)
    module = static(config).build(V, T)

    def loss(params, hyper):
        logits, _ = module.apply(
            {"params": params},
            TOKENS,
            POINTS,
            SEGMENTS,
            hyper=hyper,
            train=True,
            rngs={"dropout": jax.random.key(3, impl="unsafe_rbg")},  # compiles 5x faster
        )
        return jnp.mean(logits**2)

    return jax.jit(jax.value_and_grad(loss))


def program_length(layers: int, unroll: int) -> int:
    """Characters of the lowered forward pass."""
    module = DecoderConfig(**{**SMALL, "num_layers": layers, "unroll": unroll}).build(V, T)
    points, hyper = jnp.zeros((B, T), jnp.int32), hyper_of(module.config)

    def init(key):
        return module.init(key, points, points, points, hyper=hyper)

    def forward(params):
        return module.apply(params, points, points, points, hyper=hyper)[0].sum()

    return len(jax.jit(forward).lower(jax.eval_shape(init, jax.random.key(0))).as_text())


def test_a_rolled_stack_is_one_layer_for_the_compiler():
    """However many layers there are. Catches a loop over layers that is always unrolled."""
    assert program_length(6, unroll=1) == program_length(2, unroll=1)
    assert program_length(6, unroll=0) > 1.2 * program_length(2, unroll=0)


@functools.cache
def executed(**execution) -> tuple[str, Any]:
    """The program's text, and its loss and gradients."""
    step = loss_and_gradient(**execution)
    arguments = random_params(DROPOUT), hyper_of(DROPOUT)
    return str(step.trace(*arguments).jaxpr), step(*arguments)


@pytest.mark.parametrize(
    "execution",
    [{"unroll": 1, "remat": "full"}, {"remat": "dots"}, {"fold_rows": False}],
    ids=str,
)
def test_execution_changes_nothing(execution):
    """Scanned = unrolled, remat and folding change nothing: loss and gradients, dropout included.

    Catches: dropout keys that differ, parameters stacked in another order, a knob that is not read.
    """
    program, result = executed(**execution)
    reference_program, reference = executed()
    assert program != reference_program
    # Reassociated float32 sums: 1e-8 seen where entries are near 0.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-7), result, reference
    )


def test_remat_recomputes():
    """Catches: a remat knob that wraps nothing."""
    hyper, params = hyper_of(DROPOUT), random_params(DROPOUT)

    def products(remat: str) -> int:
        traced_program = loss_and_gradient(unroll=1, remat=remat).trace(params, hyper)
        return str(traced_program.jaxpr).count("dot_general")

    assert products("none") < products("dots") < products("full")


@pytest.mark.parametrize("rate", ["embedding", "attention", "residual", "mlp"])
def test_dropout_rates_are_traced_and_act(rate):
    """Catches: a rate as a constant (two programs, or nan from the static config), a rate read by another place."""
    knob = f"{rate}_dropout"
    params, hyper = random_params(DROPOUT), hyper_of(DROPOUT)
    step = loss_and_gradient()
    first, _ = step(params, hyper)
    second, _ = step(params, {**hyper, knob: jnp.float32(0.6)})
    assert step._cache_size() == 1
    assert np.isfinite(second)
    assert abs(float(first) - float(second)) > 1e-4


def test_zero_dropout_emits_nothing():
    config = dataclasses.replace(
        DROPOUT, **{f"{n}_dropout": 0.0 for n in ("embedding", "attention", "residual", "mlp")}
    )
    module = static(config).build(V, T)

    def forward(params):
        return module.apply(
            {"params": params},
            TOKENS,
            POINTS,
            SEGMENTS,
            hyper=hyper_of(config),
            train=True,
            rngs={"dropout": jax.random.key(0)},
        )

    assert "random_bits" not in str(jax.make_jaxpr(forward)(random_params(config)))


def test_initial_weights():
    """One program for two init scales; residual projections are smaller; norms start at one, biases at zero."""
    config = dataclasses.replace(DecoderConfig(**SMALL), width=64, init_scale=0.5)
    module = static(config).build(V, T)

    @jax.jit
    def init(hyper):
        key = jax.random.key(0, impl="unsafe_rbg")
        return module.init(key, TOKENS, POINTS, SEGMENTS, hyper=hyper)["params"]

    one = init({**hyper_of(config), "init_scale": jnp.float32(1.0)})
    two = init({**hyper_of(config), "init_scale": jnp.float32(2.0)})
    assert init._cache_size() == 1
    assert set(one) == {"tokens", "positions", "blocks", "final_norm"}
    blocks = one["blocks"]
    for name, std in [("query", 0.02), ("out", 0.01)]:
        kernel = blocks["attention"][name]["kernel"]
        assert kernel.shape == (L, 64, 64)
        assert float(kernel.std()) == pytest.approx(std, rel=0.05)
        assert abs(np.corrcoef(np.reshape(kernel, (L, -1)))[0, 1]) < 0.1, "layers must differ"
    assert float(blocks["mlp"]["out"]["kernel"].std()) == pytest.approx(0.01, rel=0.05)
    for path, leaf in jax.tree.leaves_with_path(one):
        kind = path[-1].key
        double = functools.reduce(lambda tree, key: tree[key.key], path, two)
        if kind in ("kernel", "embedding"):
            np.testing.assert_allclose(double, 2 * leaf, rtol=1e-6)  # a rounding of float32
        else:
            np.testing.assert_array_equal(leaf, 1 if kind == "scale" else 0)
        assert leaf.dtype == jnp.float32


def test_intermediates_are_sown_only_when_asked():
    """Catches: probabilities computed for nothing, or recorded after dropout."""
    config, module, params, apply = built("rotary")
    record = jax.jit(functools.partial(module.apply, mutable=["intermediates"]))
    (logits, _), state = record(
        {"params": params}, TOKENS, POINTS, SEGMENTS, hyper=hyper_of(config)
    )
    sown = state["intermediates"]["blocks"]
    (probabilities,) = sown["attention"]["probabilities"]
    assert probabilities.shape == (L, B, 4, T, T)
    close(probabilities.sum(-1)[:, 0], 1)
    np.testing.assert_array_equal(probabilities[:, 1, :, -1], 0)
    np.testing.assert_array_equal(probabilities[1, 0, :, 5, :4], 0)
    assert sown["output"][0].shape == (L, B, T, D)
    close(apply(params, TOKENS, POINTS, SEGMENTS)[0], logits)


def test_bfloat16_keeps_softmax_norms_and_logits_in_float32():
    config = dataclasses.replace(VARIANTS["learned"], dtype="bfloat16")
    module = static(config).build(V, T)
    params = random_params(config)

    def forward(params):
        return module.apply({"params": params}, TOKENS, POINTS, SEGMENTS, hyper=hyper_of(config))[0]

    jaxpr = jax.make_jaxpr(forward)(params)
    logits = jaxpr.out_avals[0]
    assert logits.dtype == jnp.float32
    dtypes = {"exp": set(), "rsqrt": set(), "dot_general": set()}
    for equation in equations(jaxpr.jaxpr):
        if equation.primitive.name in dtypes:
            dtypes[equation.primitive.name].add(str(equation.invars[0].aval.dtype))
    assert dtypes == {"exp": {"float32"}, "rsqrt": {"float32"}, "dot_general": {"bfloat16"}}
    assert module.init_cache(1, 4).key.dtype == jnp.bfloat16


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_features_and_logits_make_up_the_call():
    config, module, params, apply = built("none")
    hyper = hyper_of(config)

    @jax.jit
    def in_two_steps(params):
        variables = {"params": params}
        features, _ = module.apply(
            variables, TOKENS, POINTS, SEGMENTS, hyper=hyper, method="features"
        )
        return module.apply(variables, features, hyper=hyper, method="logits")

    logits = in_two_steps(params)
    close(logits, apply(params, TOKENS, POINTS, SEGMENTS)[0])
    assert module.init_carry(B) == ()


def test_variants_cover_the_tables():
    kinds = {type(config.positions) for config in VARIANTS.values()}
    assert kinds == set(POSITIONS.values())
    assert {c.activation for c in VARIANTS.values()} == {*ACTIVATIONS, *GATED}
    assert {type(c.feedforward) for c in VARIANTS.values()} == set(FEEDFORWARD.values())
    assert {c.norm for c in VARIANTS.values()} == set(NORMS)
    assert LearnedPositions() == DecoderConfig().positions


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"parallel_residual": True, "norm_placement": "post"},
            "parallel_residual=True needs norms before the sublayers",
        ),
        ({"num_heads": 5}, "num_heads=5 does not divide width=768"),
        ({"num_kv_heads": 5}, "num_kv_heads=5 does not divide num_heads=12"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"head_width": 0}, "head_width=0"),
        ({"mlp_dropout": 1.0}, "mlp_dropout=1.0"),
        ({"attention_pattern": ()}, "attention_pattern"),
        ({"attention_pattern": (0, -1)}, "attention_pattern"),
        ({"norm_epsilon": 0.0}, "norm_epsilon"),
        ({"logit_softcap": 0.0}, "logit_softcap=0.0"),
        ({"unroll": -1}, "unroll"),
    ],
)
def test_mistakes_are_refused(knobs, message):
    with pytest.raises(RequestError, match=message):
        DecoderConfig(**knobs)


def test_an_encoder_has_no_cache():
    with pytest.raises(RequestError, match="both directions"):
        built("encoder").module.init_cache(1, 4)
    with pytest.raises(RequestError, match="head_width=5"):
        DecoderConfig(**SMALL, head_width=5, positions=RotaryPositions()).build(V, T)
