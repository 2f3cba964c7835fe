"""Fast attention: kernels that compute what the core `dot_product` does, but never form its probabilities.

They read the rule (causal, window, segments) where they can, so that no mask [B 1 T S] is made. A core of a user's own
offers some by a class attribute `KERNELS`, a table like the one here; without it the core is used as it is.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ablax import placement
from ablax.config import RequestError, suggest
from ablax.models.attention import DENSE, DotProductAttention, Rule
from ablax.shapes import Array

REFERENCE = "reference"
"""The core itself: two einsums and a softmax."""

LANES = 128
"""Splash attention works on blocks of a multiple of this many positions."""


class Task(NamedTuple):
    """What a kernel would have to do.

    Attributes:
      platform: `cpu`, `gpu` or `tpu`.
      dtype: of queries, keys and values.
      head_width: H.
      causal: whether later keys are hidden.
      windows: those of the layers in tokens, DENSE where there is none.
      bias: whether positions add a bias to the logits.
      dropout: whether probabilities are dropped.
      whole_rows: whether every row of a training batch is one segment, with padding only behind it.
      split: whether the positions of a row are split over devices.
    """

    platform: str
    dtype: str
    head_width: int
    causal: bool
    windows: tuple[int, ...]
    bias: bool
    dropout: bool
    whole_rows: bool
    split: bool


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A way to compute attention.

    Attributes:
      attend: (the core's config, query [B T N H], key and value [B S K H], rule, bias [B N T S] or None) -> [B T N H],
        for queries and keys of the same tokens, whose positions count up by one within a segment. What it gives for
        padding does not matter, but must be finite.
      refusal: (the core's config, task) -> why it cannot, or None.
      whole_rows: whether it reads no segments, and so serves only training on rows of one segment.
    """

    attend: Callable[[Any, Array, Array, Array, Rule, Array | None], Array]
    refusal: Callable[[Any, Task], str | None]
    whole_rows: bool = False


def _fused(
    implementation: Literal["xla", "cudnn"], whole_rows: bool = False
) -> Callable[[Any, Array, Array, Array, Rule, Array | None], Array]:
    """`jax.nn.dot_product_attention`, whose cuDNN form is flash attention (arXiv:2307.08691)."""

    def attend(core, query, key, value, rule, bias):
        options: dict[str, Any] = {}
        if implementation == "cudnn" and rule.causal:
            options["is_causal"] = True  # skips the blocks above the diagonal
            if rule.window is not None:
                options["local_window_size"] = (rule.window - 1, 0)
        if not whole_rows:
            options["mask"] = rule.mask()
        elif not rule.causal:
            # Later padding is hidden from a causal query anyway.
            lengths = jnp.maximum((rule.key_segments != 0).sum(axis=1, dtype=jnp.int32), 1)
            options |= {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths}
        return jax.nn.dot_product_attention(
            query, key, value, bias, scale=core.scale, implementation=implementation, **options
        )

    return attend


def splash_attention(
    core: Any,
    query: Array,
    key: Array,
    value: Array,
    rule: Rule,
    bias: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Splash attention, the flash attention of JAX's Pallas kernels for TPUs, which skips blocks that see nothing.

    `interpret` runs it in Python, on any device, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    del bias
    length, head_width = query.shape[1], query.shape[3]
    missing = -length % LANES
    scale = head_width**-0.5 if core.scale is None else core.scale
    query = query * jnp.asarray(scale, query.dtype)
    padded = [
        jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))).swapaxes(1, 2)
        for x in (query, key, value)
    ]
    segments = jnp.pad(rule.query_segments, ((0, 0), (0, missing)))
    total = length + missing
    shape = (total, total)
    reach = None if rule.window is None else rule.window - 1
    mask: Any = masks.LocalMask(shape, (reach, 0 if rule.causal else reach), 0)
    if not rule.causal and reach is None:
        mask = masks.FullMask(shape)
    block = next(size for size in (512, 256, LANES) if total % size == 0)
    sizes: Any = {field.name: block for field in dataclasses.fields(splash.BlockSizes)[:8]}

    def rows(query: Array, key: Array, value: Array, segments: Array) -> Any:
        kernel = splash.make_splash_mha_single_device(
            masks.MultiHeadMask([mask] * query.shape[1]),
            block_sizes=splash.BlockSizes(**sizes),
            attn_logits_soft_cap=core.softcap,
            interpret=interpret,
        )
        return jax.vmap(kernel)(query, key, value, splash.SegmentIds(segments, segments))

    # XLA cannot split a kernel, so each device of a mesh gets its rows and heads, whole in length.
    letters = ("B N S H", "B K S H", "B K S H", "B S")
    out = placement.per_device(rows, letters, letters[0])(*padded, segments)
    return out.swapaxes(1, 2)[:, :length].astype(value.dtype)


def _no_probabilities(task: Task) -> str | None:
    return "it never forms the probabilities that attention_dropout drops" if task.dropout else None


def _xla_refusal(core: Any, task: Task) -> str | None:
    if core.softcap is not None:
        return "it has no attention.softcap"
    return _no_probabilities(task)


def _cudnn_refusal(core: Any, task: Task) -> str | None:
    if task.platform != "gpu":
        return f"it runs on NVIDIA GPUs, and this is a {task.platform}"
    if task.dtype != "bfloat16":
        return f"it needs dtype=bfloat16, and this is {task.dtype}"
    if task.head_width % 8 or task.head_width > 128:
        return f"it needs a head width of at most 128 that 8 divides, and this is {task.head_width}"
    if task.split:
        return "it needs whole rows, and parallel.sequence splits them"
    if task.bias:
        return "it is not tested with a bias of positions"
    return _xla_refusal(core, task)


def _rows_refusal(core: Any, task: Task) -> str | None:
    if not task.whole_rows:
        return "it reads no segments, and data.layout=packed puts several in a row"
    if not task.causal and min(task.windows) < DENSE:
        return "it has no window that looks both ways"
    return _cudnn_refusal(core, task)


def _splash_refusal(core: Any, task: Task) -> str | None:
    del core
    if task.platform != "tpu":
        return f"it runs on TPUs, and this is a {task.platform}"
    if task.bias:
        return "it adds no bias of positions"
    return _no_probabilities(task)


KERNELS: Mapping[str, Kernel] = {
    "xla": Kernel(_fused("xla"), _xla_refusal),
    "cudnn": Kernel(_fused("cudnn"), _cudnn_refusal),
    "cudnn_rows": Kernel(_fused("cudnn", whole_rows=True), _rows_refusal, whole_rows=True),
    "splash": Kernel(splash_attention, _splash_refusal),
}
"""Of the core `dot_product`."""


def kernels_of(core: Any) -> Mapping[str, Kernel]:
    """The kernels of a core, by name; none for a core of a user's own that does not offer any."""
    return KERNELS if type(core) is DotProductAttention else getattr(type(core), "KERNELS", {})


def check_name(name: str, core: Any) -> None:
    """Refuses a kernel that a core does not have.

    Raises:
      RequestError: naming those that it has.
    """
    known = ("auto", REFERENCE, *kernels_of(core))
    if name not in known:
        raise RequestError(
            f"attention_kernel={name} is none of {type(core).__name__}'s: {', '.join(known)}{suggest(name, known)}"
        )


def kernel_of(config: Any, train: bool) -> Kernel | None:
    """The kernel of a Transformer's pass over whole rows; None is the core, which `auto` means until a run chooses."""
    if config.attention_kernel in ("auto", REFERENCE):
        return None
    kernel = kernels_of(config.attention)[config.attention_kernel]
    return kernel if train or not kernel.whole_rows else None


def attend(
    kernel: Kernel,
    core: Any,
    query: Array,
    key: Array,
    value: Array,
    rule: Rule,
    bias: Array | None,
    windows: tuple[int, ...],
    window: Array | None,
) -> Array:
    """The kernel's attention [B T N H]; padding gives zeros and passes no gradient, as in the reference.

    Args:
      windows: of all layers; where they differ, `window` [] is this layer's.
    """

    def within(size: int | None) -> Array:
        # A kernel must know its window when it is built.
        given = rule if size is None else rule.replace(window=None if size == DENSE else size)
        return kernel.attend(core, query, key, value, given, bias)

    if window is None:
        output = within(None)
    else:
        sizes = sorted(set(windows))
        index = jnp.searchsorted(jnp.asarray(sizes), window)
        output = jax.lax.switch(index, [functools.partial(within, size) for size in sizes])
    return jnp.where((rule.query_segments != 0)[..., None, None], output, 0)
