"""The fields of config.json that say how heads are turned, and how far attention reaches."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ablax.config import RequestError
from ablax.models.attention import DENSE
from ablax.models.positions import LearnedPositions, RotaryPositions
from ablax.models.rotary_scaling import LinearScaling, Llama3Scaling, NoScaling, YarnScaling

# Of each kind: the class, their name -> our knob.
FACTOR = {"factor": "factor"}
ORIGINAL = {"original_max_position_embeddings": "original_length"}
KINDS: Mapping[str, tuple[type, Mapping[str, str]]] = {
    "default": (NoScaling, {}),
    "linear": (LinearScaling, FACTOR),
    "llama3": (
        Llama3Scaling,
        {
            **FACTOR,
            "low_freq_factor": "low_frequency_factor",
            "high_freq_factor": "high_frequency_factor",
            **ORIGINAL,
        },
    ),
    "yarn": (
        YarnScaling,
        {
            **FACTOR,
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "attention_factor": "attention_factor",
            "truncate": "truncate",
            **ORIGINAL,
        },
    ),
}
PLACES = ("rope_theta", "partial_rotary_factor", "rope_type", "type")
"""Entries that stand beside those of a kind."""


@dataclasses.dataclass(frozen=True)
class Rotary:
    """`rope_theta` and `rope_scaling`, or `rope_parameters`, which newer files have in their place.

    Attributes:
      base, fraction: older names of two fields, and what their absence means.
    """

    base: tuple[str, float] = ("rope_theta", 10000.0)
    fraction: tuple[str, float] = ("partial_rotary_factor", 1.0)

    @property
    def names(self) -> tuple[str, ...]:
        """See `Part`."""
        both = ("rope_theta", "partial_rotary_factor", "rope_scaling", "rope_parameters")
        return (*both, self.base[0], self.fraction[0], "max_position_embeddings")

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """See `Part`.

        Raises:
          RequestError: for a kind of scaling, or a setting of one, that is not known.
        """
        told = dict(given.get("rope_scaling") or given.get("rope_parameters") or {})
        name, default = self.base
        base = told.get("rope_theta", given.get("rope_theta", given.get(name, default)))
        name, default = self.fraction
        fraction = given.get("partial_rotary_factor", given.get(name, default))
        fraction = told.get("partial_rotary_factor", fraction)
        kind = told.get("rope_type", told.get("type", "default"))
        if kind not in KINDS:
            raise RequestError(
                f"config.json: rope_type={kind!r} is not known; there are: {', '.join(KINDS)}"
            )
        cls, knobs = KINDS[kind]
        told = {k: v for k, v in told.items() if k not in PLACES and v is not None}
        if cls is YarnScaling:
            told = _with_factor(told)
        original, length = next(iter(ORIGINAL)), given.get("max_position_embeddings")
        if original in knobs and original not in told and length is not None:
            told[original] = length
        if unknown := sorted(told.keys() - knobs.keys()):
            raise RequestError(f"config.json: {unknown[0]} of rope_type={kind!r} is not known")
        scaling = cls(**{knobs[k]: v for k, v in told.items()})
        return {"positions": RotaryPositions(float(base), float(fraction), scaling)}

    def write(self, model: Any) -> dict[str, Any]:
        """See `Part`."""
        positions = model.positions
        if not isinstance(positions, RotaryPositions):
            raise RequestError("model.positions is not rotary and has no place in this family")
        scaling = positions.scaling
        kind, knobs = next((k, n) for k, (cls, n) in KINDS.items() if cls is type(scaling))
        told = {theirs: getattr(scaling, ours) for theirs, ours in knobs.items()}
        told = {"rope_type": kind, **{k: v for k, v in told.items() if v is not None}}
        written = {self.base[0]: positions.base, "rope_scaling": told if knobs else None}
        default = self.fraction[1]
        return written | (
            {self.fraction[0]: positions.fraction} if positions.fraction != default else {}
        )


def _with_factor(told: dict[str, Any]) -> dict[str, Any]:
    """DeepSeek's two settings of YaRN are one factor on queries and keys."""
    plain, all_features = told.pop("mscale", None), told.pop("mscale_all_dim", None)
    if plain and all_features and "attention_factor" not in told:
        growth = math.log(max(told["factor"], 1.0))
        told["attention_factor"] = (0.1 * plain * growth + 1) / (0.1 * all_features * growth + 1)
    return told


@dataclasses.dataclass(frozen=True)
class Learned:
    """A table of positions.

    Attributes:
      theirs: the field that holds its number of rows.
      padded: whether its first rows are those up to that of padding (RoBERTa).
    """

    theirs: str
    padded: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """See `Part`."""
        return (self.theirs, *("pad_token_id",) * self.padded)

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """See `Part`."""
        if self.theirs not in given:
            raise RequestError(f"config.json has no {self.theirs}; is it whole?")
        offset = given.get("pad_token_id", 1) + 1 if self.padded else 0
        return {"positions": LearnedPositions(given[self.theirs] - offset, offset)}

    def write(self, model: Any) -> dict[str, Any]:
        """See `Part`."""
        positions = model.positions
        if not isinstance(positions, LearnedPositions) or positions.length is None:
            raise RequestError("model.positions is no table and has no place in this family")
        written: dict[str, Any] = {self.theirs: positions.length + positions.offset}
        return written | ({"pad_token_id": positions.offset - 1} if self.padded else {})


@dataclasses.dataclass(frozen=True)
class Window:
    """One window for all layers (Mistral).

    Attributes:
      default: tokens of it where the field is absent.
    """

    default: int | None

    names = ("sliding_window",)

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """See `Part`."""
        return {"attention_pattern": (given.get("sliding_window", self.default) or 0,)}

    def write(self, model: Any) -> dict[str, Any]:
        """See `Part`."""
        window = model.windows[0]
        return {"sliding_window": None if window == DENSE else window}


@dataclasses.dataclass(frozen=True)
class LayerWindows:
    """A window for some of the layers (Qwen)."""

    names = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """See `Part`.

        Raises:
          RequestError: for a kind of layer that is not known.
        """
        layers, window = given["num_hidden_layers"], given.get("sliding_window", 4096)
        if not given.get("use_sliding_window", False) or not window:
            window = 0
        first = given.get("max_window_layers", 28)
        kinds = given.get("layer_types") or [
            "sliding_attention" if window and i >= first else "full_attention"
            for i in range(layers)
        ]
        if unknown := set(kinds) - {"sliding_attention", "full_attention"}:
            raise RequestError(f"config.json: layer_types has {sorted(unknown)[0]!r}, not known")
        pattern = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
        return {"attention_pattern": pattern if any(pattern) else (0,)}

    def write(self, model: Any) -> dict[str, Any]:
        """See `Part`."""
        sliding = [window != DENSE for window in model.windows]
        kinds = ["sliding_attention" if slides else "full_attention" for slides in sliding]
        window = min(model.windows) if any(sliding) else None
        return {
            "use_sliding_window": any(sliding),
            "sliding_window": window,
            "max_window_layers": next((i for i, s in enumerate(sliding) if s), len(sliding)),
            "layer_types": kinds,
        }
