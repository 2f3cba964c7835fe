"""The laws of an attention core: `check_attention`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ablax.config import RequestError
from ablax.models.attention import attention_mask
from ablax.testing.subject import compiled, instance, law_broken, traced_paths

TOLERANCE = 1e-5
"""Of values of order one, in float32."""


class Inputs(NamedTuple):
    """What a core under test is given: grouped heads, a row of packed segments with padding."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    mask: jax.Array


def inputs() -> Inputs:
    """Random queries [2 6 4 8], keys and values [2 6 2 8], a causal mask [2 1 6 6]."""
    rng = np.random.default_rng(0)
    query = jnp.asarray(rng.normal(size=(2, 6, 4, 8)), jnp.float32)
    key, value = jnp.asarray(rng.normal(size=(2, 2, 6, 2, 8)), jnp.float32)
    segments = jnp.asarray([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0]])
    points = jnp.asarray([[0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 0]])
    return Inputs(
        query, key, value, attention_mask(points, points, segments, segments, causal=True)
    )


def check_attention(config: Any) -> None:
    """Runs the laws of an attention core (see `ablax.models.attention.Core`).

    `check_model(DecoderConfig(attention=config, ...))` then covers the whole, decoding included.

    Args:
      config: a frozen config dataclass whose `build()` returns the core, or an instance of it.

    Raises:
      AssertionError: if a law is broken.
      RequestError: if `config` is no attention config.
    """
    config = instance(config)
    name = type(config).__name__
    if not hasattr(config, "build"):
        raise RequestError(f"{name} has no build(); let it return the function that attends")
    if paths := traced_paths(config):
        raise RequestError(f"{name}.{paths[0]} is marked traced; a core's knobs are constants")
    attend, given = config.build(), inputs()

    def broken(law: str, seen: str, remedy: str) -> None:
        law_broken(name, law, seen, remedy)

    run = compiled(lambda query, key, value, mask: attend(query, key, value, mask=mask))
    out = run(*given)
    for dtype in (jnp.float32, jnp.bfloat16):
        cast = [x.astype(dtype) for x in given[:3]]
        made = jax.eval_shape(run, *cast, given.mask)
        if made.shape != given.query.shape or made.dtype != dtype:
            seen = f"of {dtype.__name__} it makes {made.dtype}{list(made.shape)}"
            broken("shapes", seen, "return [B T N H] in the dtype of `value`")
    check_masks(broken, run, given, np.asarray(out))
    check_nothing_visible(broken, attend, given)
    check_bias(broken, attend, given, out)
    check_dropout(broken, attend, given)


def check_masks(broken: Callable, run: Callable, given: Inputs, out: np.ndarray) -> None:
    """What the mask hides changes nothing, what it shows does; nor do empty slots behind the keys."""
    mask = np.asarray(given.mask)
    for place in range(mask.shape[-1]):
        key, value = np.array(given.key), np.array(given.value)
        key[:, place] += 1
        value[:, place] -= 1
        difference = np.abs(np.asarray(run(given.query, key, value, given.mask)) - out)
        changed, sees = difference.max(axis=(2, 3)) > TOLERANCE, mask[:, 0, :, place]
        if (changed & ~sees).any():
            row, t = np.argwhere(changed & ~sees)[0]
            seen = f"the key at {place} changes the output at {t} of row {row}, where it is hidden"
            broken("masks", seen, "apply `mask` (True = may attend) to the weights of every key")
        if sees.any() and not changed.any():
            seen = f"the key at {place} changes no output, though it is visible"
            broken("masks", seen, "read the mask as True = may attend")
    key, value = (np.concatenate([x, np.ones_like(x)], axis=1) for x in (given.key, given.value))
    wide = np.concatenate([mask, np.zeros_like(mask)], axis=-1)
    if np.abs(run(given.query, key, value, wide) - out).max() > TOLERANCE:
        remedy = "count visible keys by the mask, not by the number of slots"
        broken("cached decoding", "empty slots behind the keys change the output", remedy)


def check_nothing_visible(broken: Callable, attend: Callable, given: Inputs) -> None:
    """A query that may attend to nothing gives a finite output and no gradient."""
    hidden = ~given.mask.any(axis=(1, 3))[:, :, None, None]

    def total(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(query, key, value, mask=given.mask)
        return jnp.sum(jnp.where(hidden, out, 0)), out

    gradients, out = compiled(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*given[:3])
    if not all(np.isfinite(x).all() for x in (out, *gradients)):
        seen = "a query that may attend to nothing gives nan or inf, or its gradient does"
        broken("padding", seen, "guard the division by the sum of weights")
    if any(np.abs(x).max() > 0 for x in gradients):
        seen = "a query that may attend to nothing passes a gradient"
        broken("padding", seen, "give hidden keys a weight of exactly 0")


def check_bias(broken: Callable, attend: Callable, given: Inputs, out: jax.Array) -> None:
    """A bias [B N T S] acts, or is refused."""
    bias = np.asarray(given.query)[..., :6].swapaxes(1, 2)
    try:
        with_bias = compiled(lambda q, k, v, m, b: attend(q, k, v, mask=m, bias=b))(*given, bias)
    except RequestError:
        return
    if np.abs(with_bias - out).max() < TOLERANCE:
        broken("bias", "a bias changes nothing", "add it to the logits, or raise RequestError")


def check_dropout(broken: Callable, attend: Callable, given: Inputs) -> None:
    """The hook is given probabilities [B N T S] and its result is used, or it is refused."""
    batch, length, heads, _ = given.query.shape
    shapes: list[tuple[int, ...]] = []

    def hook(probabilities: jax.Array) -> jax.Array:
        shapes.append(probabilities.shape)
        return probabilities * 0

    try:
        out = compiled(lambda q, k, v, m: attend(q, k, v, mask=m, dropout=hook))(*given)
    except RequestError:
        return  # a core that never forms probabilities
    if [shape[:3] for shape in shapes] != [(batch, heads, length)]:
        seen = f"the hook was given {shapes or 'nothing'}, not the probabilities [B N T S] once"
        broken("dropout", seen, "call dropout(probabilities), or raise RequestError")
    if np.abs(out).max() > 0:
        broken("dropout", "what the hook returned is not used", "weigh the values by its result")
