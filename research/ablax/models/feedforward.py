"""What a block's second half is: one network for all tokens, or a mixture of experts."""

import dataclasses
import math
from typing import TYPE_CHECKING

import flax.linen as nn

from ablax.config import RequestError, knob
from ablax.models.experts import Experts
from ablax.models.layers import FeedForward

if TYPE_CHECKING:
    from ablax.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class DenseConfig:
    """One network for all tokens (Vaswani et al. 2017, section 3.3)."""

    def build(self, config: "TransformerConfig") -> nn.Module:
        """The module `mlp`."""
        return FeedForward(
            config.inner_width, config.activation, config.bias, config.dtype, name="mlp"
        )


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """Networks of the width `feedforward_width` each, chosen for each token by a router (arXiv:2101.03961, 2401.04088).

    In training a row reports `router_balance`, `router_z`, `dropped_share` and `expert_load_0` ... `_E-1`, means over
    layers and rows. Evaluation and generation drop nothing.
    """

    num_experts: int = knob(8, "experts E of each layer")
    experts_per_token: int = knob(2, "experts k that each token visits")
    capacity_factor: float | None = knob(
        None,
        "places of an expert in a row of training, in even shares (k T / E); choices beyond are dropped, the last "
        "first; none = nothing is dropped",
    )
    normalise: bool = knob(
        True, "weights of the visited experts sum to one; off: they are the router's probabilities"
    )
    balance_loss: float = knob(
        0.01,
        "factor on the balance of each layer, 1 if all experts are used alike, in nats per token",
        traced=True,
    )
    z_loss: float = knob(
        0.001, "factor on the mean squared logsumexp of each layer's router logits", traced=True
    )

    def __post_init__(self):
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise RequestError(
                f"experts_per_token={self.experts_per_token} must be at least 1 and at most "
                f"num_experts={self.num_experts}"
            )
        if self.experts_per_token == 1 and self.normalise:
            raise RequestError(
                "experts_per_token=1 with normalise=true weighs every expert by 1, so the loss could not teach the "
                "router; set normalise=false"
            )
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            raise RequestError(
                f"capacity_factor={self.capacity_factor} must be above 0, or none to drop nothing"
            )
        if self.balance_loss < 0 or self.z_loss < 0:
            raise RequestError("balance_loss and z_loss must be 0 or more")

    def slots(self, length: int) -> int:
        """Places of an expert in a row of T tokens, at most T: a token chooses an expert once."""
        assert self.capacity_factor is not None
        share = self.experts_per_token * length / self.num_experts
        return min(length, math.ceil(self.capacity_factor * share))

    def build(self, config: "TransformerConfig") -> nn.Module:
        """The module `experts`."""
        widths = config.inner_width, config.activation, config.bias, config.dtype
        return Experts(self, *widths, growth=config.growth.width, name="experts")


FEEDFORWARD = {"dense": DenseConfig, "experts": ExpertsConfig}
