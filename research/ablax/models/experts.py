"""A mixture of experts: feed-forward networks of which each token visits a few (Shazeer et al. 2017, arXiv:1701.06538).

Two forms compute the same where no capacity is exceeded. By capacity, every expert has a fixed number of slots in each
row; what comes too late stays on the residual path. Over a mesh the slots travel to the devices of their experts.
Dropless, tokens are sorted into blocks of one expert each, as MegaBlocks does (arXiv:2211.15841), in plain XLA.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ablax.models import routing
from ablax.models.layers import ACTIVATIONS, GATED, Activation
from ablax.models.routing import Routing
from ablax.placement import constrain, per_device
from ablax.shapes import Array, Float, typed

if TYPE_CHECKING:
    from ablax.models.feedforward import ExpertsConfig

Weights = Mapping[str, tuple[Array, Array | None]]
"""`in`, `gate` (where gated) and `out`: kernels [E D F] or [E F D], and biases [E F] or [E D]."""

LARGEST_BLOCK = 512


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    """[G E S D] x [E D F]; the gradient of the kernel is summed, and stays, in its own dtype."""
    return jnp.einsum("gesd,edf->gesf", x, kernel.astype(x.dtype))


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel), (x, kernel)


def _product_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    d_kernel = jnp.einsum("gesd,gesf->edf", x, dy, preferred_element_type=kernel.dtype)
    return jnp.einsum("gesf,edf->gesd", dy, kernel.astype(dy.dtype)), d_kernel


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def _block_product(x: Array, kernel: Array, owner: Array) -> Array:
    """Blocks [n S D], each times the kernel [E D F] of its owner [n]; no gathered kernel is kept for the gradient."""
    return jnp.einsum("nsd,ndf->nsf", x, kernel.astype(x.dtype)[owner])


def _block_forward(x: Array, kernel: Array, owner: Array) -> tuple[Array, tuple]:
    return _block_product(x, kernel, owner), (x, kernel, owner)


def _block_backward(saved: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array, Any]:
    x, kernel, owner = saved
    each = jnp.einsum("nsd,nsf->ndf", x, dy, preferred_element_type=kernel.dtype)
    d_x = jnp.einsum("nsf,ndf->nsd", dy, kernel.astype(dy.dtype)[owner])
    return d_x, jnp.zeros_like(kernel).at[owner].add(each), np.zeros(owner.shape, jax.dtypes.float0)


_block_product.defvjp(_block_forward, _block_backward)


def _biased(y: Array, bias: Array | None) -> Array:
    # Added in float32, so that the bias's gradient is summed in it.
    return y if bias is None else (y.astype(bias.dtype) + bias).astype(y.dtype)


def _network(x: Array, multiply: Callable[[Array, str], Array], activation: Activation) -> Array:
    inner = multiply(x, "in")
    if activation in GATED:
        inner = GATED[activation](multiply(x, "gate")) * inner
    else:
        inner = ACTIVATIONS[activation](inner)
    return multiply(inner, "out")


def _rows_at(x: Array, index: Array) -> Array:
    """[N D] -> [M D]: zeros where the index is N."""
    return x.at[index].get(mode="fill", fill_value=0)


def by_capacity(
    x: Float[Array, "B T D"], at: Array, slots: int, weights: Weights, activation: Activation
) -> Array:
    """Each choice's output [B M D], zero for a dropped one.

    Args:
      at: int32 [B M], expert x slots + place of each choice, M = k T choices in order of position; E x slots where it
        is dropped.
      slots: of each expert in each row.
    """
    batch, length, width = x.shape
    experts = weights["in"][0].shape[0]
    token = jnp.arange(at.shape[1]) // (at.shape[1] // length)
    empty = jnp.full(experts * slots, length)
    source = jax.vmap(lambda at: empty.at[at].set(token, mode="drop"))(at)

    def multiply(x: Array, name: str) -> Array:
        kernel, bias = weights[name]
        y = _biased(_product(x, kernel), None if bias is None else bias[None, :, None])
        return constrain(y, "G E T D" if name == "out" else "G E T F")

    # Rows are split over the experts' devices as well before and after, experts are in between: an all-to-all each.
    visitors = constrain(jax.vmap(_rows_at)(constrain(x, "B S D"), source), "B S D")
    visitors = constrain(visitors.reshape(batch, experts, slots, width), "G E T D")
    outputs = _network(visitors, multiply, activation)
    outputs = constrain(outputs.reshape(batch, experts * slots, width), "B S D")
    return jax.vmap(_rows_at)(outputs, at)


def dropless(x: Array, chosen: Array, weights: Weights, activation: Activation) -> Array:
    """Each choice's output: x [N D], chosen experts [N k] -> [N k D]."""
    (count, width), experts, choices = x.shape, weights["in"][0].shape[0], chosen.size
    size = block_size(choices, experts)
    blocks = min(
        choices, choices // size + experts
    )  # the last block of each expert may not be full
    flat = chosen.reshape(-1)
    place, loads = (
        found[0] for found in routing.places(flat[None], jnp.ones((1, choices), bool), experts)
    )
    ends = jnp.cumsum((loads + size - 1) // size)
    first = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])
    slot = first[flat] * size + place
    source = jnp.full(blocks * size, count).at[slot].set(jnp.arange(choices) // chosen.shape[1])
    owner = jnp.minimum((jnp.arange(blocks)[:, None] >= ends[None]).sum(1), experts - 1)

    def multiply(x: Array, name: str) -> Array:
        kernel, bias = weights[name]
        y = _block_product(x, kernel, owner)
        return _biased(y, None if bias is None else bias[owner][:, None])

    visitors = _rows_at(x, source).reshape(blocks, size, width)
    outputs = _network(visitors, multiply, activation).reshape(blocks * size, width)
    return outputs[slot].reshape(*chosen.shape, width)


def block_size(choices: int, experts: int) -> int:
    """Tokens of a block: so many that a quarter of all at most are empty, up to 512, and not under 8."""
    return max(min(8, choices), min(choices // (4 * experts), LARGEST_BLOCK))


class Stack(nn.Module):
    """Kernels [E in out], one for each expert, and biases [E out] where asked for."""

    shape: tuple[int, int, int]
    bias: bool

    @nn.compact
    def __call__(self, std: float | Array) -> tuple[Array, Array | None]:
        """Both, kernels created with normal(std)."""
        kernel = self.param("kernel", nn.initializers.normal(std), self.shape)
        shape = self.shape[0], self.shape[2]
        return kernel, self.param("bias", nn.initializers.zeros, shape) if self.bias else None


class Router(nn.Module):
    """Logits of each expert, in float32 whatever the rest (Switch Transformer, section 2.4)."""

    experts: int

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "B T D"], std: float | Array) -> Float[Array, "B T E"]:
        """The product with a kernel [D E] that is created with normal(std)."""
        kernel = self.param("kernel", nn.initializers.normal(std), (x.shape[-1], self.experts))
        return jnp.matmul(x.astype(kernel.dtype), kernel, precision="highest")


class Experts(nn.Module):
    """The feed-forward networks of a layer, of which each token visits `experts_per_token`.

    In training tokens beyond an expert's capacity are dropped, if the config says so; never otherwise, so that no
    prediction depends on another. Sown: `intermediates` chosen and weights [B T k] (0 where dropped); `losses` balance
    and z [B]; `reports` router_balance, router_z, dropped_share and expert_load [B].

    Attributes:
      config: routing.
      inner_width: F of each expert.
      activation: a key of ACTIVATIONS or GATED.
      growth: of the model's width in muP, whose root is in the `std` of a call already.
    """

    config: "ExpertsConfig"
    inner_width: int
    activation: Activation
    bias: bool
    dtype: str
    growth: float = 1.0

    @nn.compact
    @typed
    def __call__(
        self,
        x: Float[Array, "*rows D"],
        std: float | Array,
        output_std: float | Array,
        context: Any,
    ) -> Float[Array, "*rows D"]:
        """The weighted sum of the visited networks; kernels are created as in `FeedForward`.

        `context`: see `block.Context`.
        """
        config, segments = self.config, context.rule.query_segments
        rows = constrain(x.reshape(*segments.shape, x.shape[-1]), "B T D").astype(self.dtype)
        # Few outputs at every width: muP's output weights start smaller by the growth and not by its root.
        router_std = std / self.growth**0.5
        logits = Router(config.num_experts, name="router")(rows, router_std)
        found = routing.route(logits, config.experts_per_token, config.normalise)
        weights = self._weights(rows.shape[-1], std, output_std)
        counted = segments != 0
        shape = (*found.chosen.shape, rows.shape[-1])
        if context.train and config.capacity_factor is not None:
            slots = config.slots(rows.shape[1])
            at = self._places(found, counted, slots)
            kept = (at < config.num_experts * slots).reshape(found.chosen.shape)
            outputs = by_capacity(rows, at, slots, weights, self.activation).reshape(shape)
            found = found.replace(weights=jnp.where(kept, found.weights, 0))
        else:
            kept = jnp.broadcast_to(counted[..., None], found.chosen.shape)
            outputs = self._dropless(rows, found, weights)
        self._sow(found, counted, kept, context.hyper)
        y = (outputs * found.weights[..., None]).sum(2).astype(rows.dtype)
        return constrain(y, "B T D").reshape(x.shape)

    def _weights(self, width: int, std: float | Array, output_std: float | Array) -> Weights:
        experts, inner = self.config.num_experts, self.inner_width
        names = ("in", "gate") if self.activation in GATED else ("in",)
        into = {name: Stack((experts, width, inner), self.bias, name=name)(std) for name in names}
        out = Stack((experts, inner, width), self.bias, name="out")(output_std)
        return {**into, "out": out}

    def _places(self, found: Routing, counted: Array, slots: int) -> Array:
        """Where each choice goes, see `by_capacity`."""
        experts, chosen = self.config.num_experts, found.chosen
        flat = chosen.reshape(chosen.shape[0], -1)
        served = jnp.repeat(counted, chosen.shape[-1], axis=1)
        place, _ = routing.places(flat, served, experts)
        return jnp.where(served & (place < slots), flat * slots + place, experts * slots)

    def _dropless(self, x: Array, found: Routing, weights: Weights) -> Array:
        leaves, tree = jax.tree.flatten(weights)

        # The blocks of one device hold its own tokens: sorting those of all would send them around.
        def own(x: Array, chosen: Array, *leaves: Array) -> Array:
            flat = x.reshape(-1, x.shape[-1]), chosen.reshape(-1, chosen.shape[-1])
            y = dropless(*flat, jax.tree.unflatten(tree, leaves), self.activation)
            return y.reshape(*chosen.shape, x.shape[-1])

        # A token may go to any expert, so each device needs all of them, whole.
        letters = [" ".join("D" * leaf.ndim) for leaf in leaves]
        return per_device(own, ["B T D", "B T C", *letters], "B T C D")(x, found.chosen, *leaves)

    def _sow(self, found: Routing, counted: Array, kept: Array, hyper: Mapping[str, Any]) -> None:
        config = self.config
        self.sow("intermediates", "chosen", found.chosen)
        self.sow("intermediates", "weights", found.weights)
        if not self.is_mutable_collection("losses"):
            return
        balance, z = routing.balance(found, counted), routing.z(found, counted)
        for name, knob, value in (("balance", "balance_loss", balance), ("z", "z_loss", z)):
            if getattr(config, knob) != 0:
                self.sow("losses", name, hyper["feedforward"][knob] * value)
        chosen = jnp.maximum(counted.sum(1) * config.experts_per_token, 1)
        shares = routing.load(found.chosen, counted, config.num_experts)
        reports = {
            "router_balance": balance,
            "router_z": z,
            "dropped_share": 1 - (kept & counted[..., None]).sum((1, 2)) / chosen,
            "expert_load": {str(e): shares[:, e] for e in range(config.num_experts)},
        }
        for name, value in reports.items():
            self.sow("reports", name, value)
