"""A GPT and its training step in plain JAX, as one would write them by hand: no modules, no framework, no loader."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from setting import Setting

B1, B2, EPS, WEIGHT_DECAY, LEARNING_RATE, CLIP = 0.9, 0.99, 1e-8, 0.1, 1e-3, 1.0


def init(setting: Setting, key: jax.Array) -> dict[str, Any]:
    """Parameters, normal(0.02) as in GPT-2."""
    width = setting.width
    residual = 0.02 / math.sqrt(2 * setting.layers)

    def normal(shape: tuple[int, ...], std: float = 0.02) -> jax.Array:
        nonlocal key
        key, own = jax.random.split(key)
        return std * jax.random.normal(own, shape)

    def block() -> dict[str, jax.Array]:
        return {
            "norm1": jnp.ones(width),
            "qkv": normal((width, 3 * width)),
            "out": normal((width, width), residual),
            "norm2": jnp.ones(width),
            "up": normal((width, 4 * width)),
            "down": normal((4 * width, width), residual),
        }

    return {
        "tokens": normal((setting.vocab, width)),
        "positions": normal((setting.length, width)),
        "blocks": [block() for _ in range(setting.layers)],
        "norm": jnp.ones(width),
    }


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """LayerNorm without bias, in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    root = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
    return (centred * root * scale[None]).astype(x.dtype)


def logits(setting: Setting, params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """float32 [B*T V]; x is kept as [B*T D], which XLA's CPU backend wants."""
    batch, length = tokens.shape
    heads, dtype = setting.heads, jnp.dtype(setting.dtype)
    mask = np.tril(np.ones((length, length), bool))[None, None]

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return x @ kernel.astype(dtype)

    x = params["tokens"][tokens] + params["positions"][None, :length]
    x = x.reshape(batch * length, setting.width).astype(dtype)
    for block in params["blocks"]:
        qkv = product(norm(x, block["norm1"]), block["qkv"])
        q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, heads, -1), 2, 0)
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32)
        scores = jnp.where(mask, scores / math.sqrt(q.shape[-1]), -1e30)
        weights = jax.nn.softmax(scores, axis=-1).astype(dtype)
        y = jnp.einsum("BNTS,BSNH->BTNH", weights, v).reshape(x.shape)
        x = x + product(y, block["out"])
        hidden = jax.nn.gelu(product(norm(x, block["norm2"]), block["up"]))
        x = x + product(hidden, block["down"])
    x, table = norm(x, params["norm"]), params["tokens"].astype(dtype)
    return jnp.einsum("RD,VD->RV", x, table, preferred_element_type=jnp.float32)


def make_step(setting: Setting) -> Any:
    """`step((params, m, v, count), tokens, targets) -> (the next state, mean loss)`, AdamW with clipping."""

    def loss(params: dict[str, Any], tokens: jax.Array, targets: jax.Array) -> jax.Array:
        found = logits(setting, params, tokens)
        chosen = jnp.take_along_axis(found, targets.reshape(-1, 1), axis=-1)[:, 0]
        return (jax.nn.logsumexp(found, axis=-1) - chosen).mean()

    def step(state: tuple, tokens: jax.Array, targets: jax.Array) -> tuple[tuple, jax.Array]:
        params, first, second, count = state
        value, gradient = jax.value_and_grad(loss)(params, tokens, targets)
        total = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient)))
        gradient = jax.tree.map(lambda g: g * jnp.minimum(1.0, CLIP / total), gradient)
        count = count + 1
        first = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, first, gradient)
        second = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g * g, second, gradient)

        def move(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            decay = WEIGHT_DECAY * p if p.ndim > 1 else 0.0
            update = (m / (1 - B1**count)) / (jnp.sqrt(v / (1 - B2**count)) + EPS)
            return p - LEARNING_RATE * (update + decay)

        return (jax.tree.map(move, params, first, second), first, second, count), value

    return jax.jit(step, donate_argnums=0)


class Bare:
    """The hand-written step over batches that lie on the device.

    Args:
      batches: dicts with `tokens` and `targets`, int32 [B T].
    """

    def __init__(self, setting: Setting, batches: list[dict[str, Any]]):
        params = init(setting, jax.random.key(0))
        first, second = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        self.state = (params, first, second, jnp.zeros((), jnp.int32))
        self.pairs = [(jnp.asarray(b["tokens"]), jnp.asarray(b["targets"])) for b in batches]
        self.step = make_step(setting)

    def __call__(self, count: int) -> None:
        """Takes steps, never more than two in flight."""
        before = None
        for turn in range(count):
            self.state, loss = self.step(self.state, *self.pairs[turn % len(self.pairs)])
            if before is not None:
                before.block_until_ready()
            before = loss
        jax.block_until_ready(self.state)
