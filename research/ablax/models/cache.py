"""The key/value cache of a Transformer: an explicit pytree that decoding carries from call to call."""

import jax.numpy as jnp
from flax import struct
from jax import lax

from ablax.shapes import Array, Float, Int, typed


class KeyValueCache(struct.PyTreeNode):
    """Keys and values of S slots for every layer and row.

    Slots fill in the same order for all rows. Padding fills slots too, with segment 0, so that rows
    with shorter prompts have holes that nothing attends to. Slots from `index` on are empty,
    segment 0.
    """

    key: Float[Array, "L B S K H"]
    value: Float[Array, "L B S K H"]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    index: Int[Array, ""]

    @classmethod
    def empty(
        cls, layers: int, batch: int, length: int, kv_heads: int, head_width: int, dtype: str
    ) -> "KeyValueCache":
        """A cache of `length` empty slots."""
        shape = (layers, batch, length, kv_heads, head_width)
        slots = jnp.zeros((batch, length), jnp.int32)
        return cls(
            key=jnp.zeros(shape, dtype),
            value=jnp.zeros(shape, dtype),
            positions=slots,
            segment_ids=slots,
            index=jnp.zeros((), jnp.int32),
        )

    @property
    def length(self) -> int:
        """Number of slots S."""
        return self.positions.shape[1]

    @typed
    def place(
        self, positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]
    ) -> "KeyValueCache":
        """Marks the next T slots as taken by these tokens; `index` stays until all layers have written.

        Writing past the end is the caller's mistake: XLA would silently overwrite the last slots,
        so the length of prompt and continuation is checked on the host.
        """
        at = (jnp.zeros((), self.index.dtype), self.index)
        return self.replace(
            positions=lax.dynamic_update_slice(self.positions, positions, at),
            segment_ids=lax.dynamic_update_slice(self.segment_ids, segment_ids, at),
        )

    def rows(self, rows: Int[Array, "C"]) -> "KeyValueCache":
        """The cache of these rows in this order, for beams and for several continuations of one prompt."""
        return self.replace(
            key=jnp.take(self.key, rows, axis=1),
            value=jnp.take(self.value, rows, axis=1),
            positions=jnp.take(self.positions, rows, axis=0),
            segment_ids=jnp.take(self.segment_ids, rows, axis=0),
        )


@typed
def write_layer(
    stored: Float[Array, "L B S K H"],
    new: Float[Array, "B T K H"],
    layer: Int[Array, ""],
    index: Int[Array, ""],
) -> tuple[Float[Array, "L B S K H"], Float[Array, "B S K H"]]:
    """Writes T slots of one layer from `index` on.

    The whole stack is updated and carried, because XLA does that in place, where stacking one cache
    a layer copies.

    Returns:
      The stack, and that layer's slots.
    """
    zero = jnp.zeros((), index.dtype)
    at = (layer.astype(index.dtype), zero, index, zero, zero)
    stored = lax.dynamic_update_slice(stored, new[None].astype(stored.dtype), at)
    return stored, lax.dynamic_index_in_dim(stored, layer, keepdims=False)
