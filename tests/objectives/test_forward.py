"""Sums over logits that never exist all at once, or only where they count, are the sums over all logits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.experiment import base, resolve
from ablax.objectives.batch import Vocabulary
from ablax.objectives.masked import MaskedConfig
from ablax.training import session
from ablax.training.state import TrainState

B, T, V = 2, 12, 53
SMALL = {
    "data.tokenizer.vocab_size": V,
    "data.sequence_length": T,
    "model.num_layers": 1,
    "model.width": 16,
    "training.batch_size": B,
    "training.steps": 5,
    "objective.label_smoothing": 0.1,
}
KINDS = {
    "decoder": {"model.num_heads": 2},
    "lstm": {"model": "lstm"},
    "encoder": {"model": "encoder", "objective": "masked", "model.num_heads": 2},
}
# float32 sums of some dozens of terms in another order, relative to the largest entry.
TOLERANCE = 5e-6


def program_of(kind, **changes):
    experiment = resolve(base(), SMALL | KINDS[kind] | changes)
    clock = session.Clock(5, B * T, 1.0)
    return session.build_program(experiment, V, clock), session.hyper_of(experiment), experiment


def batch_of(experiment, seed=0):
    """Two segments and padding in each row, as the objective makes them."""
    rng = np.random.default_rng(seed)
    special = np.arange(V) < 4
    vocabulary = Vocabulary(V, special, np.arange(V) % 2 == 0, 3)
    rows = []
    for _ in range(B):
        row = {
            "tokens": rng.integers(4, V, T + 1).astype(np.int32),
            "positions": np.array([0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 0, 0], np.int32),
            "segment_ids": np.array([1] * 7 + [2] * 4 + [0] * 2, np.int32),
        }
        rows.append(experiment.objective.transform(row, rng, vocabulary))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def sums_of(program, hyper, batch):
    """Gradient, loss and metrics of a step from random parameters, compiled."""
    state = jax.eval_shape(program.init, session.root_key(0), hyper)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), state.params
    )

    @jax.jit
    def run(params, batch):
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=(),
            ema=(),
            carry=(),
            hyper=hyper,
            rng=session.root_key(0),
            guard=(),
        )
        return program.gradients(state, batch)[:3]

    return jax.tree.map(np.asarray, run(params, batch))


def assert_close(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = max(1e-3, float(np.abs(right).max()))
        np.testing.assert_allclose(left, right, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize(("kind", "chunk"), [("decoder", 7), ("lstm", 4), ("encoder", 1)])
def test_chunks_give_the_same_loss_and_gradient(kind, chunk):
    """Catches: a last chunk that is dropped, padding of the last chunk that counts, a head without a gradient."""
    plain, hyper, experiment = program_of(kind)
    chunked = program_of(kind, **{"training.loss_chunk": chunk})[0]
    batch = batch_of(experiment)
    got, expected = (sums_of(program, hyper, batch) for program in (chunked, plain))
    assert_close(got, expected)
    assert int(got[1].count) == int((batch["loss_weights"] > 0).sum())


def floats(jaxpr):
    """Shapes of all floating-point arrays that a jaxpr and those inside it make."""
    for equation in jaxpr.eqns:
        yield from (
            v.aval.shape for v in equation.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating)
        )
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from floats(inner)


@pytest.mark.parametrize("kind", ["decoder", "lstm"])
def test_no_array_has_all_logits(kind):
    """Catches: a chunked loss whose backward pass keeps the logits of every chunk."""

    def largest(**changes):
        program, _, experiment = program_of(kind, **changes)
        state = session.abstract_state(program, experiment)
        jaxpr = jax.make_jaxpr(program.gradients)(state, program.spec).jaxpr
        return max(math.prod(s) for s in floats(jaxpr) if s and s[-1] == V and s[0] != 16)

    assert largest() == B * T * V
    assert largest(**{"training.loss_chunk": 3}) == B * 3 * V
    assert largest(**{"training.loss_chunk": 3 * T}) == B * T * V


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_no_row_selects_more_than_the_head_has_room_for(unit):
    """Catches: a bound that forgets the rounding, the least of one, or that a word is taken whole."""
    rng = np.random.default_rng(0)
    for rate in (0.01, 0.15, 0.5, 0.99):
        config = MaskedConfig(rate=rate, unit=unit)
        for length in (1, 7, 10, 50):
            starts = rng.random(length) < 0.2
            chosen = config.select(np.ones(length, bool), starts, np.ones(length), rng)
            assert chosen.sum() <= config.most(length)


def test_the_head_computes_selected_positions_only():
    """Catches: gathered targets that do not belong to the gathered features; a head over all positions."""
    gathered, hyper, experiment = program_of("encoder")
    capacity = experiment.objective.most(T)
    assert capacity == 2
    batch = batch_of(experiment)
    assert (batch["loss_weights"].sum(axis=1) == capacity).any()
    whole = program_of("encoder")[0]
    object.__setattr__(whole.objective, "most", lambda length: length)
    assert_close(sums_of(gathered, hyper, batch), sums_of(whole, hyper, batch))
    state = session.abstract_state(gathered, experiment)
    jaxpr = jax.make_jaxpr(gathered.gradients)(state, gathered.spec).jaxpr
    assert (
        max(math.prod(s) for s in floats(jaxpr) if s and s[-1] == V and s[0] != 16)
        == B * capacity * V
    )


def test_a_model_without_a_separate_head_is_refused():
    """Catches: a refusal that comes from inside the traced step."""
    program, _, _ = program_of("decoder")
    with pytest.raises(RequestError, match="loss_chunk=4 needs methods"):
        type(program)(
            object(),
            program.objective,
            program.optimizer,
            program.schedule,
            resolve(base(), {"training.loss_chunk": 4}).training,
            program.spec,
        )
