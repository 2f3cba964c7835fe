"""How initial weights, multipliers and learning rates depend on the width: the standard way, or muP.

muP is that of Yang et al. 2022 (arXiv:2203.03466), table 8, relative to a base: a learning rate, an initial scale and
a schedule that were tuned at the base's width are near their best at every other one.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from ablax.config import RequestError, cross_check, knob

if TYPE_CHECKING:
    from ablax.models.transformer import TransformerConfig

Rule = Literal["adam", "sgd"]
"""How updates follow gradients: `adam`, entry by entry, their size not depending on theirs; `sgd`, in proportion."""


@dataclasses.dataclass(frozen=True)
class Growth:
    """How many times as wide as the base a Transformer is, 1 where the width shall change nothing.

    Attributes:
      width: of D; heads: of N; head: of H; attention: of N x H; inner: of F.
    """

    width: float = 1.0
    heads: float = 1.0
    head: float = 1.0
    attention: float = 1.0
    inner: float = 1.0


@dataclasses.dataclass(frozen=True)
class StandardParametrisation:
    """One standard deviation and one learning rate for all widths; attention is scaled by 1 / sqrt(head width)."""

    STANDARD: ClassVar[bool] = True
    """Whether every optimizer goes with it, because learning rates do not depend on the width."""

    def growth(self, model: "TransformerConfig") -> Growth:
        """None, whatever the sizes."""
        return Growth()


@dataclasses.dataclass(frozen=True)
class MaximalUpdateParametrisation:
    """muP: at the base's sizes it is the standard parametrisation.

    With m the growth of a weight's inputs: hidden weights start smaller by sqrt(m) and learn at 1/m of the learning
    rate (Adam), logits are divided by m, attention is scaled by 1 / head width. Embeddings, biases and norms stay as
    they are. Weight decay acts alike at all widths: the learning rate times `weight_decay`, without the 1/m.
    All arms of a comparison need the same base.
    """

    width: int = knob(256, "width D of the base")
    num_heads: int = knob(4, "query heads N of the base")
    head_width: int | None = knob(None, "head width H of the base; none = width / num_heads of it")
    feedforward_width: int | None = knob(
        None, "inner width F of the base; none = by the model's rule from the base's width"
    )

    def __post_init__(self):
        for name in ("width", "num_heads", "head_width", "feedforward_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"parametrisation.{name}={value} must be at least 1")
        if self.head_width is None and self.width % self.num_heads:
            raise cross_check(
                "parametrisation.num_heads",
                self.num_heads,
                f"does not divide parametrisation.width={self.width}",
                "choose a divisor, or set parametrisation.head_width",
            )

    def growth(self, model: "TransformerConfig") -> Growth:
        """Of a model over the base.

        Raises:
          RequestError: if the attention core has a scale of its own, which would stay the same at every width.
        """
        scale = getattr(model.attention, "scale", None)
        if scale is not None:
            raise RequestError(
                f"attention.scale={scale} is the same at every width, and parametrisation.kind=mup scales attention by "
                "1 / head width; set attention.scale=none, or parametrisation.kind=standard"
            )
        head = self.head_width or self.width // self.num_heads
        return Growth(
            width=model.width / self.width,
            heads=model.num_heads / self.num_heads,
            head=model.width_per_head / head,
            attention=model.num_heads * model.width_per_head / (self.num_heads * head),
            inner=model.inner_width / (self.feedforward_width or model.inner_width_of(self.width)),
        )


PARAMETRISATIONS = {"standard": StandardParametrisation, "mup": MaximalUpdateParametrisation}

# The first pattern that is found in a parameter's path wins: what it is to muP, and by which attributes of `Growth` its
# inputs and outputs grow (`one` = not at all). A vector's input is one number, or one token.
WEIGHTS: Sequence[tuple[str, str, str, str]] = (
    (r"attention/(query|key|value)/kernel$", "matrix", "width", "attention"),
    (r"attention/out/kernel$", "matrix", "attention", "width"),
    (r"(mlp|experts)/(in|gate)/kernel$", "matrix", "width", "inner"),
    (r"(mlp|experts)/out/kernel$", "matrix", "inner", "width"),
    (r"experts/router/kernel$", "matrix", "width", "one"),
    (r"head/transform/kernel$", "matrix", "width", "width"),
    (r"head/kernel$", "readout", "width", "one"),
    (r"head/bias$", "vector", "one", "one"),
    (r"attention/(query|key|value)/bias$", "vector", "one", "attention"),
    (r"attention/(query|key)_norm/", "vector", "one", "head"),
    (r"(mlp|experts)/(in|gate)/bias$", "vector", "one", "inner"),
    (r"(^|/)(tokens|token_types)/embedding$", "vector", "one", "width"),
    (r"(bias|scale)$", "vector", "one", "width"),
)


def learning_rates(model: "TransformerConfig", rule: Rule) -> tuple[tuple[str, float], ...]:
    """(regular expression on a parameter's path, factor on its learning rate), first match wins.

    Table 8 of arXiv:2203.03466. The router has few outputs at every width and no multiplier: it is the output weight of
    table 3. Empty where every factor is one.
    """
    growth = model.growth
    if growth == Growth():
        return ()
    sizes = {**dataclasses.asdict(growth), "one": 1.0}
    # T5's table has a column for each head; learned positions are vectors of the model's width.
    positions = "heads" if getattr(model.positions, "PER_HEAD", False) else "width"
    weights = (*WEIGHTS, (r"(^|/)positions/embedding$", "vector", "one", positions))
    return tuple(
        (path, _factor(kind, rule, sizes[inputs], sizes[outputs]))
        for path, kind, inputs, outputs in weights
    )


def _factor(kind: str, rule: Rule, inputs: float, outputs: float) -> float:
    if kind == "matrix":
        return 1 / inputs if rule == "adam" else outputs / inputs
    # A readout's multiplier is 1 / inputs, so it learns as an embedding does, tied or not.
    return 1.0 if rule == "adam" else inputs * outputs
