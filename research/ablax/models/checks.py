"""What the knobs of a Transformer must satisfy together."""

from typing import TYPE_CHECKING

from ablax.config import RequestError, cross_check
from ablax.models.kernels import check_name

if TYPE_CHECKING:
    from ablax.models.transformer import TransformerConfig


def check(config: "TransformerConfig") -> None:
    """Refuses a configuration that cannot be built.

    Raises:
      RequestError: for the first mistake.
    """
    for name in ("num_layers", "width", "num_heads"):
        if getattr(config, name) < 1:
            raise RequestError(f"{name}={getattr(config, name)} must be at least 1")
    for name in ("num_kv_heads", "head_width", "feedforward_width"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise RequestError(f"{name}={getattr(config, name)} must be at least 1, or none")
    for name in ("embedding", "attention", "residual", "mlp"):
        rate = getattr(config, f"{name}_dropout")
        if rate < 0 or rate >= 1:
            raise RequestError(f"{name}_dropout={rate} must be in [0, 1)")
    if config.head_width is None and config.width % config.num_heads:
        raise cross_check(
            "num_heads",
            config.num_heads,
            f"does not divide width={config.width}",
            "choose a divisor, or set head_width",
        )
    if config.num_heads % config.kv_heads:
        raise cross_check(
            "num_kv_heads",
            config.num_kv_heads,
            f"does not divide num_heads={config.num_heads}",
            "choose a divisor, or none",
        )
    if not config.attention_pattern or min(config.attention_pattern) < 0:
        raise RequestError(
            f"attention_pattern={config.attention_pattern} must name windows in tokens, 0 for dense: 0 or 0,128"
        )
    check_name(config.attention_kernel, config.attention)
    if config.unroll < 0 or config.num_token_types < 0:
        raise RequestError("unroll and num_token_types must be 0 or more")
    if config.norm_epsilon <= 0 or config.init_scale <= 0:
        raise RequestError("norm_epsilon and init_scale must be above 0")
    if config.logit_softcap is not None and config.logit_softcap <= 0:
        raise RequestError(f"logit_softcap={config.logit_softcap} must be above 0, or none")
    if config.parallel_residual and config.norm_placement == "post":
        raise cross_check(
            "parallel_residual",
            config.parallel_residual,
            "needs norms before the sublayers",
            "set norm_placement=pre",
        )
    config.parametrisation.growth(config)
