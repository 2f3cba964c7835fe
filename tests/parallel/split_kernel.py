"""Splash attention, interpreted, over meshes of 4 faked devices: prints the largest difference from the reference."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from ablax import placement
from ablax.models.attention import DotProductAttention, Rule
from ablax.models.kernels import splash_attention

B, T, N, H = 4, 6, 4, 8


def main(kv_heads: int, *sizes: int) -> None:
    """`sizes`: devices along data, fsdp, sequence, tensor."""
    rng = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, T, kv_heads, H), (B, T, kv_heads, H)
    inputs = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    segments = jnp.asarray([[1] * 6, [1, 1, 2, 2, 2, 0]] * 2)
    positions = jnp.asarray([[0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 0]] * 2)
    rule, core = Rule(positions, positions, segments, segments, True), DotProductAttention()
    axes = ("data", "fsdp", "sequence", "tensor", "expert")
    devices = np.asarray(jax.devices()).reshape(*sizes, 1)
    mesh = Mesh(devices, axes, axis_types=(AxisType.Auto,) * 5)

    def results(attend):
        def total(*arrays):
            seen = jnp.where((segments != 0)[..., None, None], attend(*arrays), 0)
            return (seen * jnp.sin(jnp.arange(seen.size)).reshape(seen.shape)).sum(), seen

        def run(*arrays):
            with placement.over(mesh, lambda stack, parameters: parameters):
                return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(*arrays)

        return jax.tree.leaves(jax.jit(run)(*inputs))

    fast = results(lambda *arrays: splash_attention(core, *arrays, rule, interpret=True))
    slow = results(lambda *arrays: core.build()(*arrays, mask=rule.mask()))
    print(max(float(np.abs(a - b).max()) for a, b in zip(fast, slow, strict=True)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
