"""A mesh, and how parameters lie on it: what programs beside the step must know to be traced for its devices."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ablax import placement
from ablax.training.masks import parameter_path
from ablax.training.sharding import AXES, Rules, partition


def mesh_over(devices: Sequence[Any], sizes: Mapping[str, int]) -> Mesh:
    """The mesh of these sizes, on which neighbours are near each other."""
    shape = tuple(sizes[axis] for axis in AXES)
    # The types are said because the default of a mesh's axes is not the same in all versions of JAX.
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=devices)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Makes contexts in which programs are traced for a mesh.

    Its value is part of what compiled programs are found by: the same model on one device and over a mesh are two.
    """

    mesh: Mesh
    rules: Rules

    def __call__(self) -> AbstractContextManager[None]:
        """See `placement.over`."""
        return placement.over(self.mesh, self._layer)

    def put(self, params: Any) -> Any:
        """Parameters, laid over the mesh by the rules.

        Raises:
          RequestError: see `partition`.
        """

        def place(path: Any, leaf: jax.Array) -> jax.Array:
            spec = partition(parameter_path(path), leaf.shape, self.mesh.shape, self.rules)
            return jax.device_put(leaf, NamedSharding(self.mesh, spec))

        return jax.tree_util.tree_map_with_path(place, params)

    def _layer(self, stack: str, variables: Any) -> Any:
        """The parameters of one layer of a stack, split as the stack is."""

        def split(path: Any, leaf: jax.Array) -> jax.Array:
            name = (
                f"{stack}/{parameter_path(path[1:])}"  # the first key is the collection's, "params"
            )
            spec = partition(name, (1, *leaf.shape), self.mesh.shape, self.rules)
            return jax.lax.with_sharding_constraint(
                leaf, NamedSharding(self.mesh, PartitionSpec(*spec[1:]))
            )

        return jax.tree_util.tree_map_with_path(split, variables)
