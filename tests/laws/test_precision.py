"""In a bfloat16 model only activations are bfloat16: what is summed over tokens, keys or the vocabulary is float32."""

import jax
import jax.numpy as jnp
import pytest

from ablax.experiment import base, resolve
from ablax.training import session

V, T = 53, 12
EXPERTS = {
    "model.feedforward.kind": "experts",
    "model.feedforward.num_experts": 3,
    "model.feedforward.capacity_factor": 1.0,
}
KINDS = {
    "decoder": {"model.num_heads": 2},
    "encoder": {"model": "encoder", "objective": "masked", "model.num_heads": 2},
    "experts": {"model.num_heads": 2, **EXPERTS},
    "dropless": {"model.num_heads": 2, **EXPERTS, "model.feedforward.capacity_factor": None},
    "lstm": {"model": "lstm"},
}
BLOCKS = 2 * 2 * T // 8 + 3  # of the dropless form: two choices of 2 T tokens, 8 to a block
# Sums, and what softmax, norms and losses are made of.
FLOAT32 = {"reduce_sum", "reduce_max", "cumsum", "log", "rsqrt", "sqrt", "div"}


def equations(jaxpr):
    """Of a jaxpr and all inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def is_narrow(variable):
    return getattr(variable.aval, "dtype", None) == jnp.bfloat16


@pytest.mark.parametrize("kind", list(KINDS))
def test_sums_are_float32(kind):
    """Catches: gradients of weights and biases that pass through bfloat16, a softmax or a norm in the compute dtype."""
    given = {
        "data.tokenizer.vocab_size": V,
        "data.sequence_length": T,
        "model.num_layers": 1,
        "model.width": 16,
        "model.dtype": "bfloat16",
        "training.batch_size": 2,
        "training.steps": 5,
    }
    experiment = resolve(base(), given | KINDS[kind])
    program = session.build_program(experiment, V, session.Clock(5, 2 * T, 1.0))
    state = session.abstract_state(program, experiment)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(program.gradients)(state, program.spec).jaxpr
    found = list(equations(jaxpr))
    wrong = [
        str(e) for e in found if e.primitive.name in FLOAT32 and any(map(is_narrow, e.outvars))
    ]
    assert wrong == []
    assert any(e.primitive.name == "dot_general" and is_narrow(e.outvars[0]) for e in found)
    # A product summed over tokens is a gradient of a weight.
    sizes = {leaf.shape[-2:] for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1}
    sizes |= {shape[::-1] for shape in sizes}
    # Of experts one each, or, dropless, one for each block of tokens.
    sizes |= {(n, *shape) for shape in sizes for n in (3, BLOCKS)}
    products = [e for e in found if e.primitive.name == "dot_general"]
    gradients = [e.outvars[0] for e in products if e.outvars[0].aval.shape in sizes]
    assert gradients
    assert [str(v.aval) for v in gradients if is_narrow(v)] == []
