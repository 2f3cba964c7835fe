"""The families of pretrained models: each a table of tensors and a table of fields."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ablax.config import RequestError, suggest
from ablax.interop import fields
from ablax.interop.fields import Part
from ablax.interop.rules import Weights
from ablax.models.transformer import DecoderConfig, TransformerConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
      name: `model_type` in config.json.
      model: decoder or encoder.
      knobs: what all its models have in common.
      parts: fields of config.json that are knobs.
      weights: its tensors.
      architectures: `architectures` of config.json -> what that says about the head. The first is written, unless
        another fits and it does not.
      fixed: values of fields that are taken, as in `fields.read`.
    """

    name: str
    model: type[TransformerConfig]
    knobs: Mapping[str, Any]
    parts: tuple[Part, ...]
    weights: Weights
    architectures: Mapping[str, Mapping[str, Any]]
    fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    @property
    def auto(self) -> str:
        """The class of transformers that opens its models."""
        return "AutoModelForCausalLM" if self.model is DecoderConfig else "AutoModelForMaskedLM"

    def read(self, config: Mapping[str, Any]) -> TransformerConfig:
        """The model that a config.json means.

        Raises:
          RequestError: see `fields.read`; or for a model with another head.
        """
        named = config.get("architectures") or [next(iter(self.architectures))]
        if named[0] not in self.architectures:
            raise RequestError(
                f"config.json: architectures={named[0]} has a head that Ablax does not have; there are: "
                f"{', '.join(self.architectures)}"
            )
        knobs = fields.read(config, self.parts, self.fixed)
        return self.model(**{**self.knobs, **knobs, **self.architectures[named[0]]})

    def write(self, model: TransformerConfig) -> dict[str, Any]:
        """The config.json of a model.

        Raises:
          RequestError: if it has a knob that the family lacks.
        """
        if type(model) is not self.model:
            raise RequestError(f"a {type(model).__name__} has no place in this family")
        written = fields.write(model, self.parts)
        problems: list[str] = []
        for architecture in self.architectures:
            config = {"architectures": [architecture], "model_type": self.name, **written}
            problems = fields.lost(model, self.read(config))
            if not problems:
                return config
        raise RequestError(f"{problems[0]} has no place in this family")


def family_of(config: Mapping[str, Any], families: Mapping[str, Family]) -> Family:
    """The family of a config.json.

    Raises:
      RequestError: if it is none of these.
    """
    name = str(config.get("model_type"))
    if name not in families:
        raise RequestError(
            f"config.json: model_type={name} is no family that Ablax knows{suggest(name, families)}"
        )
    return families[name]
