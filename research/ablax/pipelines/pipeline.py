"""`pipeline(task, model=...)`: the tasks, and what does each."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablax.config import RequestError, suggest
from ablax.model import Model
from ablax.pipelines.chat import Chat
from ablax.pipelines.feature_extraction import FeatureExtraction
from ablax.pipelines.fill_mask import FillMask
from ablax.pipelines.source import chat_template, open_model
from ablax.pipelines.text_generation import TextGeneration

Pipeline = TextGeneration | FillMask | FeatureExtraction | Chat

TASKS: dict[str, type[Pipeline]] = {
    "text-generation": TextGeneration,
    "fill-mask": FillMask,
    "feature-extraction": FeatureExtraction,
    "chat": Chat,
}


def pipeline(
    task: str,
    model: str | Path | Model,
    *,
    step: int | str = "best",
    extend: Iterable[Any] = (),
    trust_unverified: bool = False,
    revision: str | None = None,
    **defaults: Any,
) -> Any:
    """A function that does a task with a model, as in transformers.

    Args:
      task: `text-generation`, `fill-mask`, `feature-extraction` or `chat`.
      model: a run's folder; a folder with a checkpoint of Hugging Face, or a name on its hub (a `str`), of which a run
        is made in `$ABLAX_CACHE/hf` once; or what `ablax.load` gave.
      step, extend, trust_unverified: of a run's folder, see `ablax.load`.
      revision: of a name on the hub: branch, tag or commit.
      **defaults: options that hold for all calls (`TextOptions`, `FillOptions`, `FeatureOptions`, `ChatOptions`).

    Returns:
      A `TextGeneration`, `FillMask`, `FeatureExtraction` or `Chat`.

    Raises:
      RequestError: if there is no such task or model, the model cannot do it, or an option is unknown.
    """
    if task == "text2text-generation":
        raise RequestError(
            "task 'text2text-generation' needs an encoder-decoder, which is not there yet; take 'text-generation'"
        )
    if task not in TASKS:
        raise RequestError(f"unknown task {task!r}{suggest(task, TASKS)}")
    opened, folder = open_model(
        model,
        step=step,
        extend=extend,
        trust_unverified=trust_unverified,
        revision=revision,
    )
    if task == "chat" and folder is not None and defaults.get("chat_template") is None:
        defaults["chat_template"] = chat_template(folder)
    return TASKS[task](opened, **defaults)
