"""Rules on parameter paths: which parameters decay, which are matrices, and which are stacked per
layer.

A path is the parameter's keys joined by slashes: `blocks/attention/query/kernel`. Rules are regular
expressions that are searched in it; the first match wins, and a parameter that no rule covers is an
error. Rules never look at ndim.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ablax.config import RequestError, knob

STACKED = r"(^|/)blocks(/|$)"
SPARED = r"(bias|scale|gain|slopes?)$|norm[^/]*/|_state$|(^|/)(h0|c0)$"
EMBEDDINGS = r"embed[^/]*(/|$)|position[^/]*(/|$)|relative[^/]*(/|$)"
WEIGHTS = r"(kernel|weights?|embedding|table|matrix)(_[a-z0-9]+)?$|(^|/)w_[a-z0-9]+$"


def parameter_path(path: Sequence[Any]) -> str:
    """A JAX key path as text: `blocks/attention/query/kernel`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def by_rule(rules: Sequence[tuple[str, Any]], purpose: str, remedy: str) -> Callable[[Any], Any]:
    """A function from a tree of parameters to a tree of the same structure that holds each one's
    rule's value.

    Args:
      rules: (regular expression, value), first match wins.
      purpose: what the table decides, for the message.
      remedy: what a user does about an uncovered parameter, for the message.

    Raises:
      RequestError: (when called) for a parameter that no rule covers.
    """
    compiled = [(_regex(pattern, purpose), value) for pattern, value in rules]

    def value_of(path: Sequence[Any], _: Any) -> Any:
        name = parameter_path(path)
        for pattern, value in compiled:
            if pattern.search(name):
                return value
        raise RequestError(f"no {purpose} rule covers the parameter {name}; {remedy}")

    return lambda tree: jax.tree_util.tree_map_with_path(value_of, tree)


def _regex(pattern: str, purpose: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RequestError(
            f"{purpose} rule {pattern!r} is not a regular expression: {error}"
        ) from None


@dataclasses.dataclass(frozen=True)
class DecayConfig:
    """Which parameters weight decay acts on. Biases and the scales of norms never decay unless
    `weights` says so.
    """

    embeddings: bool = knob(True, "whether token and position embeddings decay")
    weights: tuple[str, ...] = knob(
        (), "regular expressions of further parameters that decay, asked first"
    )
    spared: tuple[str, ...] = knob(
        (), "regular expressions of further parameters that do not, asked second"
    )

    def rules(self) -> tuple[tuple[str, bool], ...]:
        """The table, first match wins: (regular expression, whether it decays)."""
        asked = [(p, True) for p in self.weights] + [(p, False) for p in self.spared]
        return (*asked, (SPARED, False), (EMBEDDINGS, self.embeddings), (WEIGHTS, True))

    def build(self) -> Callable[[Any], Any]:
        """The mask that an optimizer's `build` takes: parameters -> tree of bool, True where they
        decay.
        """
        return by_rule(self.rules(), "weight decay", "name it in decay.weights or decay.spared")


def per_layer(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation to each layer of the stacked parameters (`blocks`, [L ...]) by
    itself.

    What an optimizer measures per parameter (a norm, a trust ratio, a factored moment, an
    orthogonal basis) is then measured per layer, as if the layers had not been stacked. The rest of
    the tree is transformed as it is.
    """

    def init(parameters: Any) -> Any:
        return jax.vmap(transformation.init)(parameters) if jax.tree.leaves(parameters) else ()

    def update(gradient: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        if not jax.tree.leaves(gradient):
            return gradient, state
        return jax.vmap(transformation.update)(gradient, state, parameters)

    stacked = by_rule(((STACKED, "layer"), ("", "whole")), "layer", "")
    layers = optax.GradientTransformation(init, update)  # type: ignore[arg-type]
    return optax.partition({"layer": layers, "whole": transformation}, stacked)


def own_buffers(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation whose state shares no buffer with parameters or knobs, so that both can be
    donated.
    """

    def init(params: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), transformation.init(params))

    return optax.GradientTransformation(init, transformation.update)


def clipping(norm: jax.Array, max_norm: float | None) -> jax.Array:
    """What a gradient is multiplied by so that its global norm is at most `max_norm` (Pascanu et al. 2013, section
    3.2); 1 for a norm that is NaN.
    """
    if max_norm is None:
        return jnp.float32(1)
    return jnp.where(norm > max_norm, max_norm / norm, 1.0)
