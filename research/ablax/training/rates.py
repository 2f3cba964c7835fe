"""Learning rates that differ between parameters, by rules on their paths."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from ablax.config import RequestError
from ablax.training.masks import by_rule

Rates = Sequence[tuple[str, float]]
"""(regular expression, factor on the learning rate), first match wins; none = one for all."""


def rates_of(model: Any, optimizer: Any) -> Rates:
    """The factors that a model's parametrisation asks of an optimizer.

    Raises:
      RequestError: if it asks for some and nobody knows how they go with this optimizer.
    """
    parametrisation = getattr(model, "parametrisation", None)
    if not hasattr(model, "learning_rates") or getattr(parametrisation, "STANDARD", False):
        return ()
    rule = getattr(optimizer, "WIDTH_RULE", None)
    if rule is None:
        raise RequestError(
            f"model.parametrisation.kind=mup has no learning rates for {type(optimizer).__name__}; set optimizer.kind="
            "adamw, adam, lion or sgd, or declare WIDTH_RULE in a class of your own"
        )
    return model.learning_rates(rule)


def per_rate(
    build: Callable[[Mapping[str, Any], Callable[[Any], Any]], optax.GradientTransformation],
    hyper: Mapping[str, Any],
    learning_rate: Callable[[Any], Any],
    rates: Rates,
) -> optax.GradientTransformation:
    """An optimizer whose learning rate has a factor for each parameter.

    Weight decay, which is multiplied by the learning rate, is divided by the factor: it acts as it would without, as in
    the authors' package (Yang et al. 2022, https://github.com/microsoft/mup).

    Args:
      build: (knobs, step -> learning rate) -> the optimizer of some of the parameters.

    Raises:
      RequestError: (when called) for a parameter that no rule covers.
    """
    factors = sorted({factor for _, factor in rates})
    if factors in ([], [1.0]):
        return build(hyper, learning_rate)
    names = {factor: f"rate_{index}" for index, factor in enumerate(factors)}
    groups = by_rule(
        [(path, names[factor]) for path, factor in rates],
        "learning rate",
        "muP does not know how it grows with the width; set model.parametrisation.kind=standard",
    )

    def one(factor: float) -> optax.GradientTransformation:
        own = dict(hyper)
        if "weight_decay" in own:
            own["weight_decay"] = own["weight_decay"] / factor
        return build(own, lambda step: factor * learning_rate(step))

    return optax.partition({name: one(factor) for factor, name in names.items()}, groups)
