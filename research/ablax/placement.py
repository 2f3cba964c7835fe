"""Where activations lie on a mesh, said in axis letters; without a mesh nothing is said.

Models call `constrain(x, "B T D")`: the letters are those of `ablax.shapes`, and the engine that traces the program
decides what they mean. So model code names no mesh and no mesh axis, and the same code runs on one device.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES: Mapping[str, tuple[str, ...]] = {
    "B": ("data", "fsdp", "expert"),
    "G": ("data", "fsdp"),
    "E": ("expert",),
    "T": ("sequence",),
    "N": ("tensor",),
    "K": ("tensor",),
    "F": ("tensor",),
    "V": ("tensor",),
}
"""Letter of an activation's axis -> mesh axes that split it. Others (S, D, H) are whole on every device."""

Weights = Callable[[str, Any], Any]

Over = Callable[[], contextlib.AbstractContextManager[None]]
"""Makes a context in which a program is traced: an engine's `over`, whose devices then share the rows of a batch."""

_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)
_weights: contextvars.ContextVar[Weights | None] = contextvars.ContextVar("weights", default=None)


@contextlib.contextmanager
def over(mesh: Mesh, weights: Weights) -> Iterator[None]:
    """While a program is traced in this context, `constrain` and `constrain_layer` speak of this mesh.

    Args:
      weights: (path of a stack of layers, parameters of one of them) -> the same, laid over the mesh.
    """
    tokens = _mesh.set(mesh), _weights.set(weights)
    try:
        yield
    finally:
        _mesh.reset(tokens[0])
        _weights.reset(tokens[1])


def parts(letter: str) -> int:
    """Into how many parts the mesh that the program is traced for splits this axis."""
    mesh = _mesh.get()
    return 1 if mesh is None else _size(mesh, letter)


def is_split(letter: str) -> bool:
    """Whether the mesh that the program is traced for splits this axis."""
    return parts(letter) > 1


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """The same array, laid over the mesh by its axes; XLA decides about axes that the mesh does not divide.

    Args:
      letters: one per axis, as in "B T D"; a leading `*rows` is "B T" or "B", whichever x has axes for.
    """
    mesh = _mesh.get()
    if mesh is None or mesh.size == 1:
        return x
    names = letters.split()
    if names[0] == "*rows":
        names = ["B", "T"][: x.ndim - len(names) + 1] + names[1:]
    spec = [
        AXES.get(name) if size % _size(mesh, name) == 0 else PartitionSpec.UNCONSTRAINED
        for name, size in zip(names, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def whole(x: jax.Array) -> jax.Array:
    """The same array, all of it on every device: what each process of a run has to read."""
    mesh = _mesh.get()
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))


def per_device(
    function: Callable[..., jax.Array], inputs: Sequence[str], output: str
) -> Callable[..., jax.Array]:
    """The function on each device's own part of its arguments: for kernels that XLA cannot split.

    Args:
      inputs: letters of each argument's axes, as in "B N S H".
      output: letters of the result's axes.
    """
    mesh = _mesh.get()
    if mesh is None or mesh.size == 1:
        return function

    def call(*arrays: jax.Array) -> jax.Array:
        named = [
            (name, size)
            for letters, x in zip(inputs, arrays, strict=True)
            for name, size in zip(letters.split(), x.shape, strict=True)
        ]
        # Query heads may be split only as their key/value heads are, which share the mesh axis.
        whole = {AXES.get(name) for name, size in named if size % _size(mesh, name)}

        def spec(letters: str) -> PartitionSpec:
            axes = (AXES.get(name) for name in letters.split())
            return PartitionSpec(*(None if split in whole else split for split in axes))

        specs = tuple(map(spec, inputs))
        # Kernels do not say how their results vary over a mesh, which the check would need.
        return jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=spec(output), check_vma=False
        )(*arrays)

    return call


def constrain_layer(stack: str) -> Callable[[Any], Any] | None:
    """A function that lays the parameters of one layer over the mesh as the stack at this path lies; None without one.

    So the layer's gradient is split as soon as it is computed: XLA would otherwise add up the whole gradients of all
    devices and split their stack afterwards.
    """
    mesh, weights = _mesh.get(), _weights.get()
    if weights is None or mesh is None or mesh.size == 1:
        return None
    return lambda parameters: weights(stack, parameters)


def _size(mesh: Mesh, letter: str) -> int:
    return math.prod(mesh.shape[axis] for axis in AXES.get(letter, ()))
