"""The law of traced knobs: read from `hyper`, never constants of the program, and each changes something."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ablax.config import static
from ablax.testing.subject import (
    Subject,
    changed,
    compiled,
    initialiser,
    traced_paths,
    training_pass,
    value_at,
    whole,
)


def check_traced(subject: Subject) -> None:
    """Raises AssertionError if a traced knob is a constant, or is not used."""
    paths = [path for path in traced_paths(subject.config) if value_at(subject.config, path) != 0]
    usual = _constants(subject, subject.config)
    if _constants(subject, static(subject.config)) > usual:
        guilty = [
            path
            for path in paths
            if _constants(subject, changed(subject.config, path, math.nan)) > usual
        ]
        subject.broken(
            "traced knobs",
            f"{', '.join(guilty)} is a constant of the program",
            'read it from `hyper["..."]`, not from the config',
        )
    for path in paths:
        if _acts(subject, path, subject.init, subject.train):
            continue
        module = subject.config.build(subject.vocab_size, subject.tokens.shape[1])
        usual = compiled(initialiser(module, subject.tokens)), compiled(training_pass(module))
        if _acts(subject, path, *usual) or value_at(subject.given, path) != 0:
            subject.broken(
                "traced knobs",
                f"{path} changes neither initialisation nor training",
                "use its value in `hyper`; the config holds nan there, so test `!= 0`, not `> 0`",
            )


def _acts(subject: Subject, path: str, init: Any, train: Any) -> bool:
    """Whether half the knob's value changes initial parameters, loss or gradient."""
    batch = whole(subject.tokens)
    other = _halved(subject.hyper, path.split("."))
    results = [(init(h), train(subject.params, h, *batch)) for h in (subject.hyper, other)]
    same = map(np.array_equal, *map(jax.tree.leaves, results))
    return not all(same)


def _halved(hyper: Any, names: list[str]) -> Any:
    if not names:
        return hyper * 0.5
    return {**hyper, names[0]: _halved(hyper[names[0]], names[1:])}


def _constants(subject: Subject, config: Any) -> int:
    """Nan constants in initialisation and training pass of a config's program."""
    module = config.build(subject.vocab_size, subject.tokens.shape[1])
    init = jax.make_jaxpr(initialiser(module, subject.tokens))(subject.hyper)
    arguments = subject.params, subject.hyper, *whole(subject.tokens)
    return _nans(init) + _nans(jax.make_jaxpr(training_pass(module))(*arguments))


def _nans(program: Any) -> int:
    """How many constants of a jaxpr, inner ones included, hold a nan."""
    jaxpr = getattr(program, "jaxpr", program)
    count = sum(map(_is_nan, getattr(program, "consts", ())))
    for equation in jaxpr.eqns:
        count += sum(_is_nan(atom.val) for atom in equation.invars if hasattr(atom, "val"))
        for item in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(getattr(item, "jaxpr", item), "eqns"):
                count += _nans(item)
    return count


def _is_nan(value: Any) -> bool:
    kind = jnp.result_type(value)  # a random key has a dtype that is no number
    return bool(jnp.issubdtype(kind, jnp.floating) and np.isnan(np.asarray(value)).any())
