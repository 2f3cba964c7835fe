"""How fast a run is: tokens and model FLOPs per second, and the share of the hardware's peak that they are."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax

from ablax.models.flops import training_flops_per_token

# FLOP/s of dense bfloat16 matrix products of one device, by what JAX calls it; first match wins. NVIDIA's data sheets
# (H100, H200, A100, B200, L4: tensor core, without sparsity), Google Cloud's TPU pages (v4, v5e, v5p, v6e: per chip).
PEAKS: Sequence[tuple[str, float]] = (
    (r"H100 PCIe", 756e12),
    (r"H[12]00 NVL", 835e12),
    (r"H[12]00", 989e12),
    (r"A100", 312e12),
    (r"B200", 2250e12),
    (r"L4\b", 121e12),
    (r"TPU v4$", 275e12),
    (r"TPU (v5 lite|v5e)", 197e12),
    (r"TPU v5p?$", 459e12),
    (r"TPU (v6 lite|v6e)", 918e12),
)


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of dense bfloat16 products of one device; None if it is not in the table, as CPUs are not."""
    return next((peak for pattern, peak in PEAKS if re.search(pattern, device_kind)), None)


def devices_now() -> dict[str, Any]:
    """What a run computes on, for run.json."""
    found = jax.devices()
    kind = {"platform": found[0].platform, "kind": found[0].device_kind}
    return {**kind, "count": len(found)}


@dataclasses.dataclass(frozen=True)
class Speed:
    """What one step of a run is.

    Attributes:
      tokens: positions of a global batch.
      flops: of the model in a step, see `training_flops_per_token`; None where nobody counted them.
      devices: how many share the step.
      peak: FLOP/s of one of them, or None if unknown.
    """

    tokens: int
    flops: float | None = None
    devices: int = 1
    peak: float | None = None

    @classmethod
    def of(cls, experiment: Any, vocab_size: int, devices: Sequence[Any]) -> "Speed":
        """That of an experiment on those of `devices` that it uses.

        The head counts for the positions that it has to compute: those that a masked objective selects.
        """
        length = experiment.data.sequence_length
        most = getattr(experiment.objective, "most", lambda length: length)
        flops = training_flops_per_token(
            experiment.model, vocab_size, length, most(length) / length
        )
        tokens = experiment.training.batch_size * length
        used = math.prod(experiment.parallel.over(len(devices)).values())
        peak = peak_flops(devices[0].device_kind)
        return cls(tokens, None if flops is None else flops * tokens, used, peak)

    def measures(self, steps: int, seconds: float) -> dict[str, float]:
        """What the records show of `steps` in `seconds`: only what is known.

        Model FLOPs utilisation (`mfu`) is that of Chowdhery et al. 2022 (arXiv:2204.02311, appendix B): recomputation
        does not count.
        """
        rate = steps / max(seconds, 1e-9)
        found = {"tokens_per_second": rate * self.tokens}
        if self.devices > 1:
            found["tokens_per_second_per_device"] = found["tokens_per_second"] / self.devices
        if self.flops is not None:
            found["model_flops_per_second"] = rate * self.flops
            if self.peak is not None:
                found["mfu"] = rate * self.flops / (self.peak * self.devices)
        return found
