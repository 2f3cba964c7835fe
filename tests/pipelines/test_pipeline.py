"""The table of tasks."""

import pytest

from ablax.config import RequestError
from ablax.pipelines.pipeline import TASKS, pipeline


@pytest.mark.parametrize("task", TASKS)
def test_every_task_makes_its_pipeline(task, causal, masked):
    """Catches: a task that nothing exercises."""
    made = pipeline(task, masked if task == "fill-mask" else causal)
    assert type(made) is TASKS[task]
    assert task == made.TASK


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("text2text-generation", "encoder-decoder"),
        ("text-generaton", "did you mean 'text-generation'?"),
    ],
)
def test_other_tasks_are_refused(task, told, causal):
    with pytest.raises(RequestError, match=told):
        pipeline(task, causal)


def test_a_model_that_cannot_is_refused(masked):
    for task in ("text-generation", "chat"):
        with pytest.raises(RequestError, match="cannot generate; it can fill"):
            pipeline(task, masked)
