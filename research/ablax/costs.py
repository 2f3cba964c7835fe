"""What a step costs, traced abstractly: operations and memory, of one device or of each device of a mesh."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from ablax.training.sharding import RULES, Rules, partitions, row_shards, shard_bytes
from ablax.training.step import Program


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def micro_batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch that is on the devices at once: a micro-batch."""
    parts = program.config.accumulation
    return {
        name: jax.ShapeDtypeStruct((spec.shape[0] // parts, *spec.shape[1:]), spec.dtype)
        for name, spec in program.spec.items()
    }


def loss_of(program: Program, params: Any, state: Any, batch: Any) -> Any:
    key = jax.random.wrap_key_data(state.rng, impl="threefry2x32")
    rows = batch["tokens"].shape[0]
    carry = jax.tree.map(lambda leaf: leaf[:rows], state.carry)
    return program.loss(params, state.hyper, carry, key, batch)[0].total


def flops(program: Program, state: Any) -> dict[str, float]:
    """Floating-point operations of all matrix products per token; a multiplication and an addition are two.

    Returns:
      `forward_per_token`; `training_per_token` of the loss and its gradient as they are executed, recomputation
      included.
    """
    batch = micro_batch(program)
    tokens = math.prod(batch["tokens"].shape)

    def loss(params, state, batch):
        return loss_of(program, params, state, batch)

    forward = jax.make_jaxpr(loss)(state.params, state, batch)
    training = jax.make_jaxpr(jax.grad(loss))(state.params, state, batch)
    return {
        "forward_per_token": product_flops(forward.jaxpr) / tokens,
        "training_per_token": product_flops(training.jaxpr) / tokens,
    }


def product_flops(jaxpr: Any) -> float:
    """Operations of the matrix products of a jaxpr; a scan's body counts once per turn, of branches the largest."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
            continue
        inside = [product_flops(inner) for inner in _inner(equation.params)]
        if equation.primitive.name == "cond":
            total += max(inside, default=0.0)
        else:
            total += sum(inside) * equation.params.get("length", 1)
    return total


def _inner(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def memory(
    program: Program, state: Any, sizes: Mapping[str, int] | None = None, rules: Rules = RULES
) -> dict[str, int]:
    """Bytes that training needs on one device: what is kept, and what the gradient remembers.

    `activations` are the residuals of the backward pass before the compiler fuses or drops any, and as if `tensor` did
    not split them: an upper estimate. Layers that `fsdp` gathers come on top while they are computed.

    Args:
      sizes: devices along each axis of a mesh; None = one device that holds everything.
      rules: of the sharding of parameters.
    """
    sizes = sizes or {}
    specs = partitions(state, sizes, rules)
    parts = row_shards(sizes)
    batch = {
        name: jax.ShapeDtypeStruct((leaf.shape[0] // parts, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in micro_batch(program).items()
    }

    def residuals(params, state, batch):
        _, pull = jax.vjp(lambda p: loss_of(program, p, state, batch), params)
        known = {id(leaf) for leaf in jax.tree.leaves((params, state, batch))}
        return [leaf for leaf in jax.tree.leaves(pull) if id(leaf) not in known]

    def kept(name: str) -> int:
        shards = jax.tree.map(
            lambda leaf, spec: shard_bytes(leaf, spec, sizes),
            getattr(state, name),
            getattr(specs, name),
        )
        return sum(jax.tree.leaves(shards))

    along = sizes.get("sequence", 1)
    found = {
        "parameters": kept("params"),
        "optimizer": kept("opt_state"),
        "average": kept("ema"),
        "gradients": kept("params") * (2 if program.config.accumulation > 1 else 1),
        "activations": _bytes(jax.eval_shape(residuals, state.params, state, batch)) // along,
        "batch": _bytes(batch) // along,
    }
    return {**found, "total": sum(found.values())}
