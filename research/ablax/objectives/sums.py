"""Sums and counts travel; one division happens at the end."""

import flax.struct
import jax.numpy as jnp

from ablax.shapes import Array, Float, Int


@flax.struct.dataclass
class Sums:
    """A sum and what it has to be divided by.

    Attributes:
      total: float32 [] sum over everything that counts.
      count: int32 [] how many things counted.
    """

    total: Float[Array, ""]
    count: Int[Array, ""]

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.total + other.total, self.count + other.count)

    @classmethod
    def zero(cls) -> "Sums":
        """The neutral element of `+`."""
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    @classmethod
    def of(cls, values: Float[Array, "..."], counted: Array) -> "Sums":
        """Sums `values` where `counted` (bool or 0/1, same shape) holds."""
        weights = counted.astype(jnp.float32)
        return cls((values * weights).sum(), counted.astype(jnp.int32).sum())
