"""Position schemes against their papers' formulas and the implementations in transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.models.positions import (
    POSITIONS,
    AlibiPositions,
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    Sizes,
    T5Positions,
    rotate,
)
from ablax.models.relative import alibi_slopes, t5_buckets

SIZES = Sizes(width=8, num_heads=4, head_width=6, max_length=16, causal=True)
POINTS = jnp.asarray([[0, 1, 5, 15]], jnp.int32)


def test_schemes_act_where_they_should():
    """Every entry of the table acts in its one place and nowhere else."""
    acts = {}
    for kind, cls in POSITIONS.items():
        module = cls().build(SIZES)

        def run(method, *arguments, module=module):
            return module.init_with_output(jax.random.key(0), *arguments, method=method)[0]

        results = {
            "embedding": run("embedding", POINTS, 0.02),
            "rotation": run("rotation", POINTS),
            "bias": run("bias", POINTS, POINTS, 0.02),
        }
        acts[kind] = [name for name, result in results.items() if result is not None]
    assert acts == {
        "learned": ["embedding"],
        "sinusoidal": ["embedding"],
        "rotary": ["rotation"],
        "alibi": ["bias"],
        "t5": ["bias"],
        "none": [],
    }


def test_learned_positions_are_rows_of_the_table():
    module = LearnedPositions().build(SIZES)
    table = jnp.arange(16 * 8, dtype=jnp.float32).reshape(16, 8)
    vectors = module.apply({"params": {"embedding": table}}, POINTS, 0.02, method="embedding")
    np.testing.assert_array_equal(vectors[0], table[POINTS[0]])
    far = module.apply({"params": {"embedding": table}}, POINTS + 1, 0.02, method="embedding")
    assert np.isnan(far[0, -1]).all(), "a position beyond the table must poison, not clamp"


def test_learned_positions_begin_behind_the_offset():
    """Catches: an offset that makes the table longer and shifts nothing."""
    module = LearnedPositions(length=20, offset=2).build(SIZES)
    table = jnp.arange(22 * 8, dtype=jnp.float32).reshape(22, 8)
    vectors = module.apply({"params": {"embedding": table}}, POINTS, 0.02, method="embedding")
    np.testing.assert_array_equal(vectors[0], table[POINTS[0] + 2])


def test_sinusoidal_values():
    """Catches: a wrong exponent; sin(p / 10000^(2i/D)) of the paper, sines first."""
    vectors = SinusoidalPositions().build(SIZES).apply({}, POINTS, 0.02, method="embedding")
    for i in range(4):
        angle = np.asarray(POINTS[0]) / 10000 ** (2 * i / 8)
        # float32 angles of a few radians.
        np.testing.assert_allclose(vectors[0, :, i], np.sin(angle), atol=1e-6)
        np.testing.assert_allclose(vectors[0, :, 4 + i], np.cos(angle), atol=1e-6)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotary_logits_depend_on_the_distance_only(fraction):
    """Catches: rotating query and key by different angles, or features beyond the fraction."""
    module = RotaryPositions(fraction=fraction).build(SIZES)
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 6)), jnp.float32) for _ in range(2))

    def logit(t, s):
        angles = [
            module.apply({}, jnp.full((1, 1), p, jnp.int32), method="rotation") for p in (t, s)
        ]
        return float((rotate(query, angles[0]) * rotate(key, angles[1])).sum())

    # float32: sums of six products near 1, angles of up to 14.
    assert logit(3, 1) == pytest.approx(logit(14, 12), abs=1e-5)
    assert logit(3, 1) != pytest.approx(logit(3, 2), abs=1e-3)
    assert logit(0, 0) == pytest.approx(float((query * key).sum()), abs=1e-5)
    turned = rotate(query, module.apply({}, POINTS[:, 1:2], method="rotation"))
    changed = np.abs(np.asarray(turned - query))[0, 0, 0] > 1e-6
    assert changed.sum() == (6 if fraction == 1 else 2)


def test_alibi_slopes_are_the_papers():
    """Catches: slopes that start at 1; 12 heads mix the slopes of 8 and 16."""
    assert alibi_slopes(8) == [2**-i for i in range(1, 9)]
    assert alibi_slopes(12) == alibi_slopes(8) + alibi_slopes(16)[:8:2]
    bias = AlibiPositions().build(SIZES).apply({}, POINTS, POINTS, 0.02, method="bias")
    assert bias.shape == (1, 4, 4, 4)
    assert float(bias[0, 0, 3, 1]) == -(2.0**-2) * 14


def test_alibi_equals_transformers():
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    torch = pytest.importorskip("torch")
    for heads in (3, 8, 12):
        theirs = bloom.build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
        np.testing.assert_allclose(alibi_slopes(heads), theirs.numpy(), rtol=1e-6)  # float32


@pytest.mark.parametrize("causal", [True, False])
def test_t5_buckets_equal_transformers(causal):
    """Catches: key - query with the wrong sign, buckets not halved without causality."""
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    torch = pytest.importorskip("torch")
    relative = np.arange(-300, 301, dtype=np.int32)
    theirs = t5.T5Attention._relative_position_bucket(
        torch.tensor(relative), bidirectional=not causal, num_buckets=32, max_distance=128
    )
    ours = t5_buckets(jnp.asarray(relative), causal=causal, num_buckets=32, max_distance=128)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_t5_bias_is_of_key_minus_query():
    """Catches: query - key, which sends all earlier keys to bucket 0; a table indexed [N, buckets]."""
    table = jnp.arange(8 * 4, dtype=jnp.float32).reshape(8, 4)
    module = T5Positions(num_buckets=8, max_distance=12).build(SIZES)
    queries, keys = POINTS[:, 2:], POINTS[:, :3]
    bias = module.apply({"params": {"embedding": table}}, queries, keys, 0.02, method="bias")
    relative = keys[:, None, :] - queries[:, :, None]
    buckets = t5_buckets(relative, causal=True, num_buckets=8, max_distance=12)
    for n, t, s in np.ndindex(4, 2, 3):
        assert bias[0, n, t, s] == table[buckets[0, t, s], n]
    assert buckets[0].tolist() == [[4, 4, 0], [7, 7, 7]]


def test_t5_known_buckets():
    """Values of the paper's defaults, without transformers: exact below 16, the last from 128 on."""
    distances = jnp.asarray([0, -1, -15, -16, -127, -128, -1000, 7], jnp.int32)
    ours = t5_buckets(distances, causal=True, num_buckets=32, max_distance=128)
    assert ours.tolist() == [0, 1, 15, 16, 31, 31, 31, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotaryPositions(fraction=0.0), "fraction=0.0"),
        (lambda: RotaryPositions(base=1.0), "base=1.0"),
        (lambda: SinusoidalPositions(base=0.5), "base=0.5"),
        (lambda: LearnedPositions(length=15).build(SIZES), "length=15 is less than the 16"),
        (lambda: LearnedPositions(offset=-1), "offset=-1"),
        (lambda: T5Positions(num_buckets=3), "num_buckets=3"),
        (lambda: T5Positions(max_distance=16), "max_distance=16"),
        (lambda: RotaryPositions().build(SIZES._replace(head_width=5)), "head_width=5"),
        (lambda: SinusoidalPositions().build(SIZES._replace(width=7)), "width=7"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(RequestError, match=message):
        make()
