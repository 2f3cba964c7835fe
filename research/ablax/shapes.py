"""Axis letters and shape checking, the same everywhere.

B batch, T query/time, S key/source, D model width, N query heads, K key/value heads, H head width, F feed-forward
width, V vocabulary, L layers, E experts, G rows of a batch as experts see them, C classes, channels or choices.

`@typed` checks a function's jaxtyping annotations with beartype. Model code runs only while a program is traced, so
the check costs nothing afterwards, and a wrong shape fails with both names and both sizes.
"""

from collections.abc import Callable
from typing import TypeVar

from beartype import beartype
from jax import Array
from jaxtyping import Bool, Float, Int, UInt32, jaxtyped

F = TypeVar("F", bound=Callable)

__all__ = ["Array", "Bool", "Float", "Int", "UInt32", "typed"]


def typed(function: F) -> F:
    """Checks the annotated shapes and dtypes of a function at each call (under jit: while it is traced)."""
    return jaxtyped(typechecker=beartype)(function)
