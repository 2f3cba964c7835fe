"""Laws of states: each token's is the module's own, whatever shares its row."""

import contextlib
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax.config import RequestError
from ablax.evaluation.states import Reader, check_states

CONTEXT, BOS, EOS = 8, 1, 2


def reader(model, depth=1.0, rows=3):
    over = contextlib.nullcontext
    return Reader(model.module, model.hyper, BOS, EOS, CONTEXT, depth, rows, dict, over)


def alone(model, tokens, depth):
    """States of one sequence alone in its row, of a layer."""
    padded = np.zeros((1, CONTEXT), np.int32)
    padded[0, : len(tokens)] = tokens
    places = np.arange(CONTEXT, dtype=np.int32)[None]
    (states, _), sown = model.apply(padded, places, (places < len(tokens)).astype(np.int32))
    if depth != 1:
        (states,) = sown["intermediates"]["blocks"]["output"]
        states = states[0]
    return np.asarray(states)[0, : len(tokens)]


@pytest.mark.parametrize(
    ("family", "depth"), [("decoder", 1.0), ("decoder", 0.5), ("encoder", 1.0), ("lstm", 1.0)]
)
def test_a_token_is_read_with_half_a_window_before_it(family, depth, request, documents):
    """Catches: states of another place; a recurrent model that is told more than the others; a token read twice."""
    model = request.getfixturevalue(family)
    model.apply = jax.jit(
        lambda *batch: model.module.apply(
            {"params": model.params},
            *batch,
            hyper=model.hyper,
            method="features",
            mutable=["intermediates"],
        )
    )
    asked = np.random.default_rng(0).random(len(documents.tokens)) < 0.8
    found = {}
    for states, tokens in reader(model, depth).states(model.params, documents, asked):
        assert states.dtype == np.float64
        assert not found.keys() & set(tokens.tolist())
        found |= dict(zip(tokens.tolist(), states))
    assert sorted(found) == np.flatnonzero(asked).tolist()
    for begin, end in itertools.pairwise(documents.offsets):
        text = [BOS, *documents.tokens[begin:end].tolist(), EOS]
        for token in range(begin, end):
            place = token - begin + 1
            start = max(0, (place - CONTEXT) // 4 + 1) * 4 if place >= CONTEXT else 0
            if token in found:
                states = alone(model, text[start : start + CONTEXT], depth)
                np.testing.assert_allclose(found[token], states[place - start], atol=2e-5)


def test_an_untrained_module_has_fresh_parameters(lstm):
    params = reader(lstm).untrained()
    shapes = [jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (params, lstm.params)]
    assert shapes[0] == shapes[1]
    assert float(jnp.abs(params["embedding"]).max()) <= 0.2  # the fixture's init_scale


class Headless(nn.Module):
    """A model that shows no states."""

    def __call__(self, tokens, positions, segment_ids, *, hyper, carry=(), train=False):
        return jnp.zeros((*tokens.shape, 5)), carry


class Flat(Headless):
    """One that shows its last states and no layers."""

    @nn.compact
    def features(self, tokens, positions, segment_ids, *, hyper, carry=(), train=False):
        return self.param("table", nn.initializers.ones, (5, 2))[tokens], carry

    def __call__(self, tokens, positions, segment_ids, *, hyper, carry=(), train=False):
        states = self.features(tokens, positions, segment_ids, hyper=hyper)[0]
        return jnp.zeros((*tokens.shape, 5)) + states.sum(), carry


def test_a_module_that_shows_no_states_is_refused():
    """Catches: a run that ends in an error when it has been trained."""
    with pytest.raises(RequestError, match=r"evaluation\.probe_documents: Headless has no method"):
        check_states(Headless(), {}, 1.0)
    check_states(Flat(), {}, 1.0)
    with pytest.raises(RequestError, match=r"evaluation\.probe_layer=0\.5: Flat sows no"):
        check_states(Flat(), {}, 0.5)


def test_layers_of_shipped_models(decoder, lstm):
    """They are refused nowhere. Catches: a model that no longer sows what a probe of a layer reads."""
    for model in (decoder, lstm):
        check_states(model.module, model.hyper, 0.5)
