"""Ablax: a JAX/Flax research framework for language models and ablations that can be defended.

`run = ablax.train(config, workdir)`; `model = ablax.load(workdir)`; `ablax.pipeline(task, model)`; `ablax.runs(root)`.
Everything is imported when it is first used, so that `ablax --help` needs no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablax.catalog.listing import runs as runs
    from ablax.config import RequestError as RequestError
    from ablax.experiment import base as base
    from ablax.experiment import resolve as resolve
    from ablax.folders import evaluate as evaluate
    from ablax.folders import fork as fork
    from ablax.folders import prepare as prepare
    from ablax.model import load as load
    from ablax.pipelines.pipeline import pipeline as pipeline
    from ablax.trainer import train as train

_PLACES = {
    "RequestError": "config",
    "base": "experiment",
    "resolve": "experiment",
    "evaluate": "folders",
    "fork": "folders",
    "prepare": "folders",
    "runs": "catalog.listing",
    "load": "model",
    "pipeline": "pipelines.pipeline",
    "train": "trainer",
}

__all__ = [  # noqa: RUF022 - in the order of a user's day
    "base",
    "resolve",
    "prepare",
    "train",
    "load",
    "pipeline",
    "evaluate",
    "fork",
    "runs",
    "RequestError",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(
            f"module 'ablax' has no attribute {name!r}; there are: {', '.join(_PLACES)}"
        )
    return getattr(importlib.import_module(f"ablax.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
