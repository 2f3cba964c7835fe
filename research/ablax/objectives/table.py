"""The table of objectives."""

from ablax.objectives.causal import CausalConfig
from ablax.objectives.masked import MaskedConfig

OBJECTIVES = {"causal": CausalConfig, "masked": MaskedConfig}
