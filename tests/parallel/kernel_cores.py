"""An attention core whose kernels are right, interpreted, wrong, or wrong on one rank alone."""

import dataclasses
import functools
import os
from typing import ClassVar

import jax.numpy as jnp

from ablax.models.attention import DotProductAttention
from ablax.models.kernels import KERNELS, Kernel, splash_attention


def forgetful(core, query, key, value, rule, bias):
    """Attention over all earlier tokens of a row, whatever their segment."""
    ones = jnp.ones_like(rule.query_segments)
    whole = rule.replace(query_segments=ones, key_segments=ones)
    return core.build()(query, key, value, mask=whole.mask(), bias=bias)


def on(rank, wrong):
    """The kernel `xla`, and a wrong one on one rank."""
    return wrong if os.environ.get("ABLAX_PROCESS_ID") == str(rank) else KERNELS["xla"].attend


def always(attend):
    """A kernel that serves every task."""
    return Kernel(attend, lambda core, task: None)


@dataclasses.dataclass(frozen=True)
class Kernels(DotProductAttention):
    """`dot_product` with kernels of its own."""

    KERNELS: ClassVar = {
        "right": KERNELS["xla"],
        "interpreted": always(functools.partial(splash_attention, interpret=True)),
        "forgetful": always(forgetful),
        "forgetful_on_0": always(on(0, forgetful)),
        "forgetful_on_1": always(on(1, forgetful)),
        "broken_on_1": always(on(1, lambda *_: 1 / 0)),
    }
