"""config.json and the model's knobs, in both directions: every field is a knob, has to have one value, or says nothing
about the computation."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ablax.config import RequestError, differences
from ablax.models.attention import DENSE
from ablax.models.transformer import TransformerConfig

REQUIRED = object()
"""The default of a field that config.json must have."""

# What acts in training only, and what is rounded: no part of what a checkpoint computes.
BESIDE = (
    "embedding_dropout",
    "attention_dropout",
    "residual_dropout",
    "mlp_dropout",
    "init_scale",
    "scale_residual_init",
    "dtype",
)
_SILENT = """
architectures model_type transformers_version torch_dtype dtype _name_or_path name_or_path use_cache
bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id decoder_start_token_id
initializer_range output_attentions output_hidden_states return_dict return_dict_in_generate
torchscript use_bfloat16 id2label label2id num_labels problem_type finetuning_task
task_specific_params gradient_checkpointing output_past classifier_dropout chunk_size_feed_forward
pruned_heads tie_encoder_decoder tokenizer_class prefix directionality pooler_fc_size
pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type summary_type
summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout n_ctx
pretraining_tp max_length min_length do_sample temperature top_k top_p typical_p repetition_penalty
length_penalty no_repeat_ngram_size num_beams num_return_sequences early_stopping
attn_implementation reorder_and_upcast_attn _attn_implementation_autoset vocab_size
"""
SILENT = frozenset(_SILENT.split())
"""Fields that change no logit of the model itself, and those that are read apart."""
FIXED: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "is_decoder": (False, None),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "position_embedding_type": ("absolute",),
}
"""Fields that mean what the project's models do with these values, and something else with others."""


class Part(Protocol):
    """Some fields of config.json that are some knobs.

    Attributes:
      names: of the fields.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Knobs by name."""
        ...

    def write(self, model: Any) -> dict[str, Any]:
        """The inverse of `read`."""
        ...


@dataclasses.dataclass(frozen=True)
class Field:
    """One field that is one knob, or sets several alike.

    Attributes:
      theirs: its name.
      ours: names of the knobs.
      default: what its absence means, in their spelling.
      values: their value -> ours; None where both are spelled alike. The first of equal ones is written.
    """

    theirs: str
    ours: tuple[str, ...]
    default: Any
    values: Mapping[Any, Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """See `Part`."""
        return (self.theirs,)

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """See `Part`."""
        value = given.get(self.theirs, self.default)
        if value is REQUIRED:
            raise RequestError(f"config.json has no {self.theirs}; is it whole?")
        if self.values is not None:
            if value not in self.values:
                raise RequestError(
                    f"config.json: {self.theirs}={value!r} is not known; there are: {', '.join(self.values)}"
                )
            value = self.values[value]
        return dict.fromkeys(self.ours, value)

    def write(self, model: Any) -> dict[str, Any]:
        """See `Part`."""
        value = getattr(model, self.ours[0])
        if self.values is not None:
            theirs = [name for name, knob in self.values.items() if knob == value]
            if not theirs:
                raise RequestError(f"model.{self.ours[0]}={value!r} has no place in this family")
            value = theirs[0]
        return {self.theirs: value}


def field(theirs: str, *ours: str, default: Any = REQUIRED, values: Any = None) -> Field:
    """A `Field`."""
    return Field(theirs, ours, default, values)


def read(
    given: Mapping[str, Any],
    parts: Sequence[Part],
    fixed: Mapping[str, tuple[Any, ...]],
    silent: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """The knobs that a config.json means.

    Args:
      fixed: values of fields that a family takes, beside `FIXED`.
      silent: fields that say nothing, beside `SILENT`.

    Raises:
      RequestError: for a field that is not known, or has a value that the project's models do not compute.
    """
    fixed = {**FIXED, **fixed}
    for name, values in fixed.items():
        if name in given and given[name] not in values:
            raise RequestError(
                f"config.json: {name}={given[name]!r} means a computation that Ablax's Transformer does not have; it "
                f"has {' and '.join(map(repr, values))}"
            )
    known = {name for part in parts for name in part.names} | fixed.keys() | SILENT | silent
    if unknown := sorted(given.keys() - known):
        raise RequestError(
            f"config.json has fields that Ablax does not know: {', '.join(unknown)}; they may change what the model "
            "computes: take them out of a copy of it if you know that they do not"
        )
    return {name: value for part in parts for name, value in part.read(given).items()}


def write(model: TransformerConfig, parts: Sequence[Part]) -> dict[str, Any]:
    """The fields of config.json that say what the model's knobs do."""
    model = explicit(model)
    return {name: value for part in parts for name, value in part.write(model).items()}


def explicit(model: TransformerConfig) -> TransformerConfig:
    """The same model with nothing left to be derived."""
    windows = tuple(0 if window == DENSE else window for window in model.windows)
    return dataclasses.replace(
        model,
        num_kv_heads=model.kv_heads,
        head_width=model.width_per_head,
        feedforward_width=model.inner_width,
        qkv_bias=model.qkv_biased,
        attention_out_bias=model.out_biased,
        attention_pattern=windows if any(windows) else (0,),
    )


def canonical(model: TransformerConfig) -> TransformerConfig:
    """A model of the same computation; equal ones are equal."""
    plain = type(model)()
    beside = {name: getattr(plain, name) for name in BESIDE}
    return dataclasses.replace(explicit(model), **beside)


def lost(model: TransformerConfig, read_back: TransformerConfig) -> list[str]:
    """Knobs that config.json cannot say, as `path=value`."""
    changed = differences(canonical(model), canonical(read_back), "result")
    return [f"model.{path}={value!r}" for path, (value, _) in changed.items()]
