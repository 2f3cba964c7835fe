"""How parameters, and what follows them, are split over a mesh: a table of rules on paths."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from ablax.config import RequestError
from ablax.training.manifest import leaves_of
from ablax.training.masks import parameter_path
from ablax.training.state import TrainState

AXES = ("data", "fsdp", "expert", "sequence", "tensor")
"""Axes of a mesh, the slowest first: neighbouring devices, which have the fastest links, share a layer."""

ROWS = PartitionSpec(("data", "fsdp", "expert"))
"""Axis B of batches and carries."""

SPLITTING = ("fsdp", "expert", "tensor")
"""Axes over which parameters are split."""

Rules = Sequence[tuple[str, PartitionSpec]]


def _spec(*axes: str | None) -> PartitionSpec:
    return PartitionSpec(*axes)


# The first pattern that matches the whole path wins. `fsdp` splits the model width (Zhao et al. 2023,
# arXiv:2304.11277), `tensor` heads, feed-forward width and vocabulary (Shoeybi et al. 2019, arXiv:1909.08053, section
# 3), `expert` experts (arXiv:2006.16668, section 3). Vectors stay whole: together they are less
# than a thousandth of a model.
RULES: Rules = (
    (r"((tokens|token_types|positions)/)?embedding", _spec("tensor", "fsdp")),
    (r"head/kernel|head_kernel", _spec("fsdp", "tensor")),
    (r"head/transform/kernel", _spec("fsdp", None)),
    (r"blocks/attention/(query|key|value)/kernel", _spec(None, "fsdp", "tensor")),
    (r"blocks/attention/out/kernel", _spec(None, "tensor", "fsdp")),
    (r"blocks/mlp/(in|gate)/kernel", _spec(None, "fsdp", "tensor")),
    (r"blocks/mlp/out/kernel", _spec(None, "tensor", "fsdp")),
    (r"blocks/experts/router/kernel", _spec(None, "fsdp", None)),
    (r"blocks/experts/(in|gate)/kernel", _spec(None, "expert", "fsdp", "tensor")),
    (r"blocks/experts/out/kernel", _spec(None, "expert", "tensor", "fsdp")),
    (r"lstm_\d+/kernel_(input|recurrent)", _spec("fsdp", None)),
    (r"(.*[/_])?(bias|scale)", _spec()),
)


def parse_rule(text: str) -> tuple[str, PartitionSpec]:
    """`REGEX=AXIS,AXIS,...` with `-` for a dimension that stays whole, as in `blocks/mine/kernel=-,fsdp,tensor`.

    Raises:
      RequestError: if it is not of this form.
    """
    pattern, separator, axes = text.rpartition("=")
    names = [name.strip() for name in axes.split(",")] if axes.strip() else []
    split = [name for name in names if name != "-"]
    if not separator or not set(split) <= set(SPLITTING) or len(set(split)) < len(split):
        raise RequestError(
            f"parallel.rules has {text!r}; write REGEX=AXIS,AXIS with - or one of {', '.join(SPLITTING)}, once each, "
            "per dimension"
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise RequestError(f"parallel.rules has {text!r}: {error}") from None
    return pattern, _spec(*(None if name == "-" else name for name in names))


def partition(
    path: str, shape: Sequence[int], sizes: Mapping[str, int], rules: Rules = RULES
) -> PartitionSpec:
    """How one parameter is split.

    Args:
      path: `blocks/attention/query/kernel`.
      sizes: devices along each axis of the mesh.

    Returns:
      The rule's partition; a dimension stays whole where the axis has one device or does not divide it.

    Raises:
      RequestError: if the mesh splits parameters and no rule covers this one, or a rule has too many dimensions.
    """
    if all(sizes.get(axis, 1) == 1 for axis in SPLITTING):
        return _spec()
    for pattern, spec in rules:
        if not re.fullmatch(pattern, path):
            continue
        if len(spec) > len(shape):
            raise RequestError(
                f"the sharding rule {pattern!r} has {len(spec)} dimensions and {path} has {len(shape)}"
            )
        return _spec(
            *(
                axis if axis and sizes.get(axis, 1) > 1 and size % sizes[axis] == 0 else None
                for axis, size in zip(spec, shape)
            )
        )
    raise RequestError(
        f"no sharding rule covers the parameter {path} {list(shape)}; name it in parallel.rules, for example "
        f"--config.parallel.rules='{path}={','.join('-' * len(shape))}'"
    )


def partitions(state: TrainState, sizes: Mapping[str, int], rules: Rules = RULES) -> TrainState:
    """A tree of PartitionSpecs like the (abstract) state.

    What an optimizer keeps per parameter (its path ends with the parameter's, and the shape is the same) is split
    as that parameter is; so is the average. Carries are split by rows; everything else is whole on every device.

    Raises:
      RequestError: see `partition`, and if the mesh would split no parameter over one of its axes, or a rule that is
        not built in matches none.
    """
    shapes = {path: leaf.shape for path, leaf in leaves_of(state.params).items()}
    specs = {path: partition(path, shape, sizes, rules) for path, shape in shapes.items()}
    for pattern, spec in rules:
        if (pattern, spec) not in RULES and not any(re.fullmatch(pattern, path) for path in shapes):
            raise RequestError(
                f"parallel.rules has {pattern!r}, which matches no parameter; `ablax inspect` lists their paths"
            )
    for axis in SPLITTING:
        if sizes.get(axis, 1) > 1 and not any(axis in spec for spec in specs.values()):
            raise RequestError(
                f"parallel.{axis}={sizes[axis]} divides no parameter of this model; choose a divisor of "
                f"{'its number of experts' if axis == 'expert' else 'its widths'}"
            )

    def follow(path: Sequence[Any], leaf: Any) -> PartitionSpec:
        parts = parameter_path(path).split("/")
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if shapes.get(name) == leaf.shape:
                return specs[name]
        return _spec()

    def followed(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(follow, tree)

    return dataclasses.replace(
        jax.tree.map(lambda _: _spec(), state),
        params=followed(state.params),
        opt_state=followed(state.opt_state),
        ema=followed(state.ema),
        carry=jax.tree.map(lambda _: ROWS, state.carry),
    )


def batch_partition(shape: Sequence[int], length: int) -> PartitionSpec:
    """Rows over data, fsdp and expert, and positions [B T] over sequence.

    Args:
      shape: of one array of a batch.
      length: T.
    """
    if len(shape) > 1 and shape[1] == length:
        return _spec(*ROWS, "sequence")
    return ROWS


def row_shards(sizes: Mapping[str, int]) -> int:
    """Into how many parts a mesh splits the rows of a batch."""
    return math.prod(sizes.get(axis, 1) for axis in ROWS[0])


def shard_bytes(leaf: Any, spec: PartitionSpec, sizes: Mapping[str, int]) -> int:
    """Bytes of an array on one device."""
    parts = 1
    for axes in spec:
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            parts *= sizes.get(axis, 1)
    return math.prod(leaf.shape) * leaf.dtype.itemsize // parts
