"""Which kernel `auto` takes, and what a kernel that was asked for refuses."""

import pytest

from ablax.config import RequestError
from ablax.models.attention import DENSE, DotProductAttention
from ablax.models.kernel_choice import choose, task_of
from ablax.models.kernels import Task
from ablax.models.positions import AlibiPositions
from ablax.models.transformer import DecoderConfig, EncoderConfig

TASK = Task("gpu", "bfloat16", 64, True, (DENSE,), False, False, True, False)


@pytest.mark.parametrize(
    ("changes", "name", "why"),
    [
        ({}, "cudnn_rows", "the fastest on a gpu"),
        ({"whole_rows": False}, "cudnn", "not cudnn_rows: it reads no segments"),
        ({"causal": False, "windows": (8,)}, "cudnn", "looks both ways"),
        ({"dtype": "float32"}, "reference", "needs dtype=bfloat16"),
        ({"head_width": 20}, "reference", "this is 20"),
        ({"dropout": True}, "reference", "attention_dropout"),
        ({"bias": True}, "reference", "bias of positions"),
        ({"split": True}, "reference", "parallel.sequence"),
        ({"platform": "tpu", "whole_rows": False}, "splash", "the fastest on a tpu"),
        ({"platform": "tpu", "dropout": True}, "reference", "not splash: it never forms"),
        ({"platform": "cpu"}, "reference", "nothing faster is known on a cpu"),
    ],
)
def test_auto_takes_the_fastest_that_can_and_says_why(changes, name, why):
    """Catches: a kernel that `auto` would use beyond what it can do."""
    choice = choose("auto", DotProductAttention(), TASK._replace(**changes))
    assert choice.name == name
    assert why in choice.why


def test_a_kernel_that_cannot_is_refused_in_one_line():
    """Catches: an explicit wish that silently becomes the reference."""
    with pytest.raises(RequestError, match=r"attention_kernel=splash cannot be used: .* a gpu"):
        choose("splash", DotProductAttention(), TASK)
    with pytest.raises(RequestError, match=r"attention_kernel=cudnn .*softcap"):
        choose("cudnn", DotProductAttention(softcap=1.0), TASK)
    with pytest.raises(RequestError, match="did you mean 'cudnn'"):
        DecoderConfig(attention_kernel="cuddn")


def test_a_model_states_its_task():
    """Catches: a bias or dropout of the model that the choice of a kernel does not know of."""
    task = task_of(
        EncoderConfig(positions=AlibiPositions(), attention_dropout=0.1), "cpu", True, False
    )
    assert (task.bias, task.dropout, task.causal, task.head_width) == (True, True, False, 64)
    assert not task_of(DecoderConfig(), "cpu", True, False).bias
