"""The other optimizers of optax that need nothing beyond gradients and parameters, as kinds of
their own.

A kind's knobs are the arguments of optax's function, read from its signature, so a wrong name or
type fails as it does everywhere. What is left out, and why, stands in EXCLUDED.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from ablax.config import RequestError, knob
from ablax.training.masks import per_layer

MASKS = ("mask", "weight_decay_mask")
OMITTED = {
    "learning_rate",
    "eta",
    "key",
    "seed",
    "accumulator_dtype",
    "clip_value_fn",
    "trust_ratio_mask",
    *MASKS,
}
UNIT_INTERVAL = re.compile(r"b[1-3]|momentum|decay|rho")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What every optimizer has: a peak learning rate, ranges, and `build(hyper, learning_rate,
    decay_mask)`.

    `WIDTH_RULE` says how its learning rate must follow a model's width in muP: `adam`, `sgd`, or
    None where that is not known (see `models.parametrisation.Rule`).
    """

    WIDTH_RULE: ClassVar[Literal["adam", "sgd"] | None] = None

    learning_rate: float = knob(1e-3, "peak learning rate", traced=True)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
                continue
            if UNIT_INTERVAL.fullmatch(field.name) and not 0 <= value < 1:
                raise RequestError(f"{field.name}={value} must lie in [0, 1)")
            if field.name == "eps" and value == 0 != field.default:
                raise RequestError(
                    "eps=0 must be larger: a gradient of zero would be divided by zero"
                )
            if value < 0 or math.isinf(value):
                raise RequestError(f"{field.name}={value} must be zero or larger, and finite")

    def build(self, hyper: Mapping[str, Any], learning_rate: Callable, decay_mask: Callable) -> Any:
        """The optax transformation; knobs are float32 scalars that may be tracers."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class OptaxKind:
    """How one function of optax becomes a kind.

    Attributes:
      factory: the function.
      layers: whether it measures something per parameter, and so acts per layer on stacked
        parameters.
      schedule: whether its learning rate may be a function of the step.
      without_mask: how weight decay obeys the mask although the function takes none.
    """

    factory: Callable[..., Any]
    layers: bool = False
    schedule: bool = True
    without_mask: Literal["parameters", "both"] | None = None


KINDS: dict[str, OptaxKind] = {
    "adabelief": OptaxKind(optax.adabelief),
    "adadelta": OptaxKind(optax.adadelta),
    "adagrad": OptaxKind(optax.adagrad),
    "adamax": OptaxKind(optax.adamax),
    "adamaxw": OptaxKind(optax.adamaxw),
    "adan": OptaxKind(optax.adan),
    "amsgrad": OptaxKind(optax.amsgrad),
    "fromage": OptaxKind(optax.fromage, layers=True),
    "lamb": OptaxKind(optax.lamb, layers=True),
    "lars": OptaxKind(optax.lars, layers=True),
    "nadam": OptaxKind(optax.nadam),
    "nadamw": OptaxKind(optax.nadamw),
    "novograd": OptaxKind(optax.novograd, layers=True, without_mask="parameters"),
    "optimistic_adam": OptaxKind(optax.optimistic_adam_v2),
    "optimistic_gradient_descent": OptaxKind(optax.optimistic_gradient_descent),
    "radam": OptaxKind(optax.radam),
    "rmsprop": OptaxKind(optax.rmsprop),
    "sign_sgd": OptaxKind(optax.sign_sgd),
    "signum": OptaxKind(optax.signum),
    "sm3": OptaxKind(optax.sm3, layers=True, schedule=False),
    "yogi": OptaxKind(optax.yogi),
    "acprop": OptaxKind(contrib.acprop),
    "ademamix": OptaxKind(contrib.ademamix),
    "adopt": OptaxKind(contrib.adopt),
    "cocob": OptaxKind(contrib.cocob),
    "dadapt_adamw": OptaxKind(contrib.dadapt_adamw, without_mask="parameters"),
    "dowg": OptaxKind(contrib.dowg),
    "prodigy": OptaxKind(contrib.prodigy, without_mask="both"),
    "simplified_ademamix": OptaxKind(contrib.simplified_ademamix),
}

EXCLUDED: dict[str, str] = {
    "lbfgs": "its line search evaluates the loss",
    "polyak_sgd": "its step size needs the value of the loss",
    "momo": "its step size needs the value of the loss",
    "momo_adam": "its step size needs the value of the loss",
    "reduce_on_plateau": "it needs the value of the loss, and is a schedule",
    "sophia": "it needs an estimate of the Hessian's diagonal from the loss",
    "sam": "it needs a second gradient at other parameters",
    "mechanize": "it wraps another optimizer",
    "schedule_free": "it wraps another optimizer; schedule_free_adamw is the one offered",
    "schedule_free_sgd": "it evaluates another average; schedule_free_adamw is the one offered",
    "dpsgd": "it needs one gradient per example",
    "differentially_private_aggregate": "it needs one gradient per example",
    "noisy_sgd": "its noise comes from a random state of its own, not from the run's",
    "rprop": "it is for full batches: its step sizes replace the learning rate and the schedule",
    "madgrad": "its weight decay and averaging assume one learning rate for the whole run",
    "dog": "its first step is a pair of a word and a number, no knob; dowg is its successor",
    "galore": "its projection is refreshed by a branch that acting per layer would take at every step",
    "optimistic_adam": "optax replaced it by optimistic_adam_v2, offered as optimistic_adam",
}


def optax_kinds() -> dict[str, type]:
    """kind -> generated frozen dataclass, for every entry of KINDS."""
    return {name: _config_class(name, kind) for name, kind in KINDS.items()}


def _config_class(name: str, kind: OptaxKind) -> type:
    docs = _argument_docs(kind.factory)
    fields, default_rate = [], 1e-3
    for parameter in inspect.signature(kind.factory).parameters.values():
        if parameter.name == "learning_rate" and isinstance(parameter.default, float):
            default_rate = parameter.default
        fields += _knobs(
            parameter, docs.get(parameter.name, f"argument `{parameter.name}` of optax")
        )
    rate = ("learning_rate", float, knob(default_rate, "peak learning rate", traced=True))
    title = "".join(part.capitalize() for part in name.split("_")) + "Config"

    def build(
        self: Any, hyper: Mapping[str, Any], learning_rate: Callable, decay_mask: Callable
    ) -> Any:
        return _build(kind, self, hyper, learning_rate, decay_mask)

    return dataclasses.make_dataclass(
        title,
        [rate, *fields],
        bases=(Optimizer,),
        frozen=True,
        namespace={
            "__module__": __name__,
            "__doc__": f"The {name} of optax, which names its source.",
            "build": build,
        },
    )


def _knobs(parameter: inspect.Parameter, doc: str) -> list[tuple[str, Any, Any]]:
    """The dataclass fields of one argument of optax: none for what is no knob, two for a pair of
    betas.
    """
    name, default = parameter.name, parameter.default
    if name in OMITTED:
        return []
    if name == "betas":
        return [
            (f"b{i + 1}", float, knob(b, f"beta {i + 1} of: {doc}", traced=True))
            for i, b in enumerate(default)
        ]
    if name == "mu_dtype":
        return [(name, Literal["float32", "bfloat16"], knob("float32", doc))]
    if name == "momentum":
        text = f"{doc} 0 keeps none." if default is None else doc
        return [(name, float, knob(default or 0.0, text, traced=True))]
    if name == "weight_decay":
        return [(name, float, knob(default or 0.0, doc, traced=True))]
    if type(default) in (bool, int):
        return [(name, type(default), knob(default, doc))]
    return [(name, float, knob(default, doc, traced=True))] if type(default) is float else []


def _argument_docs(function: Callable) -> dict[str, str]:
    """Argument -> first sentence about it in the docstring of an optax function."""
    text = inspect.getdoc(getattr(function, "func", function)) or ""
    section = re.search(r"\nArgs:\n(.*?)\n\n", text, re.S)
    entries = re.findall(
        r"^  (\w+): (.*?)(?=^  \w+: |\Z)", section[1] + "\n" if section else "", re.S | re.M
    )
    return {name: re.split(r"(?<=\.) ", " ".join(text.split()))[0] for name, text in entries}


def _build(
    kind: OptaxKind, config: Any, hyper: Mapping[str, Any], learning_rate: Callable, mask: Callable
) -> Any:
    signature = inspect.signature(kind.factory).parameters
    arguments = {}
    for field in dataclasses.fields(config):
        value = hyper[field.name] if field.metadata["traced"] else getattr(config, field.name)
        arguments[field.name] = jnp.dtype(value) if field.name == "mu_dtype" else value
    if "betas" in signature:
        arguments["betas"] = (arguments.pop("b1"), arguments.pop("b2"))
    if "momentum" in signature and signature["momentum"].default is None and config.momentum == 0:
        arguments["momentum"] = None
    arguments |= {name: mask for name in MASKS if name in signature}
    arguments["learning_rate"] = learning_rate if kind.schedule else 1.0
    transformation = _masked_decay(kind, arguments, mask)
    if not kind.schedule:
        transformation = optax.chain(transformation, optax.scale_by_schedule(learning_rate))
    return per_layer(transformation) if kind.layers else transformation


def _masked_decay(kind: OptaxKind, arguments: Mapping[str, Any], mask: Callable) -> Any:
    """The factory's transformation, its weight decay acting only where the mask says so."""
    decayed = kind.factory(**arguments)
    if kind.without_mask is None:
        return decayed
    plain = kind.factory(**{**arguments, "weight_decay": 0.0})

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        keep = mask(params)
        if (
            kind.without_mask == "parameters"
        ):  # used for the decay only: zero parameters do not decay
            spared = jax.tree.map(lambda k, p: p if k else jnp.zeros_like(p), keep, params)
            return decayed.update(updates, state, spared)
        # The state does not depend on the decay, so both updates share it.
        with_decay, state_after = decayed.update(updates, state, params)
        without, _ = plain.update(updates, state, params)
        return jax.tree.map(lambda k, a, b: a if k else b, keep, with_decay, without), state_after

    return optax.GradientTransformation(decayed.init, update)
