"""Which tensors of a checkpoint are which parameters. Every leaf is accounted for, in both directions."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ablax.config import RequestError
from ablax.interop.layouts import SAME, TRANSPOSED, Layout
from ablax.interop.weights import Tensors

SHOWN = 4
BLOCKS = "blocks/"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor and the parameters that it holds.

    Attributes:
      theirs: its name, with {} for the number of a layer.
      ours: paths of parameters; those under `blocks` have a leading axis L.
      layout: how one layer's arrays relate to the tensor.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Layout = SAME


def linear(ours: str, theirs: str, layout: Layout = TRANSPOSED) -> tuple[Rule, Rule]:
    """A linear layer: kernel and bias."""
    return (
        Rule(f"{theirs}.weight", (f"{ours}/kernel",), layout),
        Rule(f"{theirs}.bias", (f"{ours}/bias",)),
    )


def fused(theirs: str, layout: Layout) -> tuple[Rule, Rule]:
    """Query, key and value in one linear layer."""
    names = [f"{BLOCKS}attention/{name}" for name in ("query", "key", "value")]
    return (
        Rule(f"{theirs}.weight", tuple(f"{name}/kernel" for name in names), layout),
        Rule(f"{theirs}.bias", tuple(f"{name}/bias" for name in names), layout),
    )


def norm(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """A norm: scale and bias."""
    return (
        Rule(f"{theirs}.weight", (f"{ours}/scale",)),
        Rule(f"{theirs}.bias", (f"{ours}/bias",)),
    )


def table(ours: str, theirs: str) -> tuple[Rule]:
    """A table of embeddings."""
    return (Rule(f"{theirs}.weight", (f"{ours}/embedding",)),)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of a family.

    Attributes:
      rules: of all its parameters; those that a model lacks do not apply.
      prefix: of names in a model with a head, which checkpoints of the bare model leave out.
      copies: tensor -> the one that it must equal, where both are one parameter.
      dropped: regular expressions of tensors that the project's model has no use for, and why.
      spellings: (regular expression, replacement) of older names.
    """

    rules: tuple[Rule, ...]
    prefix: str
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dropped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    spellings: tuple[tuple[str, str], ...] = ()

    def name_of(self, found: str) -> str:
        """The name of a tensor as the rules spell it."""
        for pattern, replacement in self.spellings:
            found = re.sub(pattern, replacement, found)
        return self.prefix + found if self._knows(self.prefix + found) else found

    def _knows(self, name: str) -> bool:
        patterns = [re.escape(rule.theirs).replace(r"\{\}", r"\d+") for rule in self.rules]
        return any(re.fullmatch(pattern, name) for pattern in (*patterns, *self.dropped))

    def reason_to_drop(self, name: str) -> str | None:
        """Why a tensor is not used; None if it must be."""
        return next((why for p, why in self.dropped.items() if re.fullmatch(p, name)), None)

    def applicable(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Rule]:
        """The rules of a model's parameters.

        Args:
          shapes: of all its parameters.

        Raises:
          RequestError: if one has no place in the family.
        """
        rules = [rule for rule in self.rules if all(path in shapes for path in rule.ours)]
        covered = {path for rule in rules for path in rule.ours}
        if homeless := [path for path in shapes if path not in covered]:
            raise RequestError(f"parameter {homeless[0]} has no place in this family")
        return rules


class Place(NamedTuple):
    """Where a tensor belongs: its rule, the layer (None outside the blocks) and the shape that it must have."""

    rule: Rule
    layer: int | None
    shape: tuple[int, ...]


def _depth(rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    return shapes[rule.ours[0]][0] if rule.ours[0].startswith(BLOCKS) else None


def _of_layer(rule: Rule, arrays: Mapping[str, np.ndarray], layer: int | None) -> list[np.ndarray]:
    return [arrays[path] if layer is None else arrays[path][layer] for path in rule.ours]


def _places(
    weights: Weights, shapes: Mapping[str, tuple[int, ...]], heads: int
) -> dict[str, Place]:
    """Every tensor that a checkpoint must hold, by name."""
    places: dict[str, Place] = {}
    for rule in weights.applicable(shapes):
        depth = _depth(rule, shapes)
        hollow = {path: np.broadcast_to(np.zeros((), bool), shapes[path]) for path in rule.ours}
        shape = rule.layout.join(_of_layer(rule, hollow, None if depth is None else 0), heads).shape
        for layer in [None] if depth is None else range(depth):
            places[rule.theirs.format(layer)] = Place(rule, layer, shape)
    return places


def gather(
    weights: Weights, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], heads: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The parameters of a model, float32, from a checkpoint.

    Args:
      shapes: path -> shape of every parameter.
      heads: query heads N.

    Returns:
      Path -> array; name of a tensor that was not used -> why.

    Raises:
      RequestError: if a tensor is missing, has another shape, is not of floats, is not known, or a copy differs.
    """
    found = {weights.name_of(name): name for name in tensors.names()}
    places = _places(weights, shapes, heads)
    dropped = {n: why for n in found if n not in places and (why := weights.reason_to_drop(n))}
    copies = {n: o for n, o in weights.copies.items() if n in found and n not in places}
    known = places.keys() | dropped.keys() | copies.keys()
    problems = [
        f"{name} is {_told(tensors, found.get(name))} in the checkpoint and "
        f"{list(places[name].shape) if name in places else 'nothing'} in the model"
        for name in sorted(places.keys() | found.keys())
        if name not in known
        or (
            name in places
            and (name not in found or tensors.shape(found[name]) != places[name].shape)
        )
    ]
    if problems:
        more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        raise RequestError(
            f"{tensors.folder} does not fit its config.json: {'; '.join(problems[:SHOWN])}{more}; "
            "get a checkpoint and a config.json that belong together"
        )
    for copy, original in copies.items():
        if not np.array_equal(tensors.read(found[copy]), tensors.read(found[original])):
            raise RequestError(
                f"{tensors.folder}: {copy} differs from {original}, and config.json says that they are one "
                "(tie_word_embeddings); set tie_word_embeddings=false in config.json if they are not"
            )
    params = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    for name, (rule, layer, _) in places.items():
        parts = rule.layout.split(tensors.read(found[name]), heads)
        for path, part in zip(rule.ours, parts, strict=True):
            params[path][... if layer is None else layer] = part
    return params, dropped | {n: f"the same as {o}" for n, o in copies.items()}


def _told(tensors: Tensors, name: str | None) -> Any:
    return "nothing" if name is None else list(tensors.shape(name))


def scatter(
    weights: Weights, params: Mapping[str, np.ndarray], heads: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) of a checkpoint, from a model's parameters by their paths.

    Raises:
      RequestError: if a parameter has no place in the family.
    """
    shapes = {path: array.shape for path, array in params.items()}
    for name, (rule, layer, _) in _places(weights, shapes, heads).items():
        yield name, rule.layout.join(_of_layer(rule, params, layer), heads)
