"""The key/value cache of a Transformer: an explicit pytree that decoding carries from call to call."""

import jax.numpy as jnp
from flax import struct
from jax import lax

from ablax.placement import constrain
from ablax.shapes import Array, Float, Int, typed


class Slots(struct.PyTreeNode):
    """Where new tokens go.

    Attributes:
      index: how many columns have been written.
      ring: whether slots are used again, column i in slot i % S.
    """

    index: Int[Array, ""]
    ring: bool = struct.field(pytree_node=False, default=False)

    def kept(self, columns: int, length: int) -> Int[Array, "kept"]:
        """The slots of those of so many new columns that stay, the last ones."""
        kept = min(columns, length)
        return (self.index + columns - kept + jnp.arange(kept, dtype=self.index.dtype)) % length

    def first(self, length: int) -> Int[Array, ""]:
        """The slot of the first new column."""
        return self.index % length if self.ring else self.index


class KeyValueCache(struct.PyTreeNode):
    """Keys and values of S slots for every layer and row.

    Slots fill in the same order for all rows. Padding fills slots too, with segment 0, so that rows
    with shorter prompts have holes that nothing attends to. Slots that were not written are empty,
    segment 0.

    A ring has as many slots as the widest attention window, and forgets what no later token attends to. Its rows
    must have their padding before their tokens: a hole between them would push out a token too early.
    """

    key: Float[Array, "L B S K H"]
    value: Float[Array, "L B S K H"]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    slots: Slots

    @classmethod
    def empty(
        cls,
        layers: int,
        batch: int,
        length: int,
        kv_heads: int,
        head_width: int,
        dtype: str,
        window: int | None = None,
    ) -> "KeyValueCache":
        """A cache for `length` columns, a ring if a window in tokens is shorter."""
        ring = window is not None and window < length
        length = window if ring and window else length
        shape = (layers, batch, length, kv_heads, head_width)
        marks = jnp.zeros((batch, length), jnp.int32)
        return cls(
            key=constrain(jnp.zeros(shape, dtype), "L B S K H"),
            value=constrain(jnp.zeros(shape, dtype), "L B S K H"),
            positions=marks,
            segment_ids=marks,
            slots=Slots(jnp.zeros((), jnp.int32), ring),
        )

    @property
    def length(self) -> int:
        """Number of slots S."""
        return self.positions.shape[1]

    @property
    def index(self) -> Int[Array, ""]:
        """How many columns have been written."""
        return self.slots.index

    @typed
    def place(
        self, positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]
    ) -> tuple["KeyValueCache", Int[Array, "B S"], Int[Array, "B S"]]:
        """Marks the next T slots as taken by these tokens; `index` stays until all layers have written.

        Writing past the end is the caller's mistake: XLA would silently overwrite the last slots,
        so the length of prompt and continuation is checked on the host.

        Returns:
          The cache, and positions and segments of the keys that `write_layer` lets these tokens see.
        """
        seen, marks = [], []
        for stored, new in ((self.positions, positions), (self.segment_ids, segment_ids)):
            after, visible = _write(stored, new, self.slots)
            marks.append(after)
            seen.append(visible)
        return self.replace(positions=marks[0], segment_ids=marks[1]), seen[0], seen[1]

    def rows(self, rows: Int[Array, "C"]) -> "KeyValueCache":
        """The cache of these rows in this order, for beams and for several continuations of one prompt."""
        return self.replace(
            key=jnp.take(self.key, rows, axis=1),
            value=jnp.take(self.value, rows, axis=1),
            positions=jnp.take(self.positions, rows, axis=0),
            segment_ids=jnp.take(self.segment_ids, rows, axis=0),
        )


def _write(stored: Array, new: Array, slots: Slots) -> tuple[Array, Array]:
    """Writes T columns into [B S ...]; gives that, and what the new tokens may see.

    Several columns at once see what a ring held before them, which they may overwrite, and themselves.
    """
    length, columns = stored.shape[1], new.shape[1]
    if not slots.ring or columns == 1:
        after = lax.dynamic_update_slice_in_dim(stored, new, slots.first(length), axis=1)
        return after, after
    kept = slots.kept(columns, length)
    after = stored.at[:, kept].set(new[:, columns - len(kept) :])
    return after, jnp.concatenate([stored, new], axis=1)


@typed
def write_layer(
    stored: Float[Array, "L B S K H"],
    new: Float[Array, "B T K H"],
    layer: Int[Array, ""],
    slots: Slots,
) -> tuple[Float[Array, "L B S K H"], Float[Array, "B seen K H"]]:
    """Writes T columns of one layer.

    The whole stack is updated and carried, because XLA does that in place, where stacking one cache
    a layer copies.

    Returns:
      The stack, and what the new tokens may see of that layer, in their dtype.
    """
    columns, dtype = new.shape[1], new.dtype
    new = new.astype(stored.dtype)
    if slots.ring and columns > 1:
        after, seen = _write(lax.dynamic_index_in_dim(stored, layer, keepdims=False), new, slots)
        return lax.dynamic_update_index_in_dim(stored, after, layer, axis=0), seen.astype(dtype)
    zero = jnp.zeros((), slots.index.dtype)
    at = (layer.astype(zero.dtype), zero, slots.first(stored.shape[2]), zero, zero)
    stored = lax.dynamic_update_slice(stored, new[None], at)
    return stored, lax.dynamic_index_in_dim(stored, layer, keepdims=False).astype(dtype)
