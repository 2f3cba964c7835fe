"""Which attention kernel a run uses, and why."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ablax.config import RequestError
from ablax.models.kernels import REFERENCE, Task, kernels_of
from ablax.models.positions import Positions
from ablax.models.transformer import TransformerConfig

FASTEST: Mapping[str, tuple[str, ...]] = {"gpu": ("cudnn_rows", "cudnn"), "tpu": ("splash",)}
"""What `auto` tries, by platform, the fastest first; on a CPU the reference is the fastest (docs/LOG.md)."""


def task_of(config: TransformerConfig, platform: str, whole_rows: bool, split: bool) -> Task:
    """What a kernel would have to do in training; see `Task`."""
    positions: Any = config.positions.build(config.sizes(2))
    return Task(
        platform=platform,
        dtype=config.dtype,
        head_width=config.width_per_head,
        causal=config.CAUSAL,
        windows=config.windows,
        bias=type(positions).bias is not Positions.bias,
        dropout=config.attention_dropout != 0,
        whole_rows=whole_rows,
        split=split,
    )


class Choice(NamedTuple):
    """A kernel's name, and why it is used."""

    name: str
    why: str


def choose(wanted: str, core: Any, task: Task) -> Choice:
    """The kernel that a run uses.

    Args:
      wanted: a kernel's name, `reference` or `auto`.

    Raises:
      RequestError: if the kernel that was asked for cannot do the task.
    """
    table = kernels_of(core)
    if wanted == REFERENCE:
        return Choice(REFERENCE, "asked for")
    if wanted != "auto":
        if why := table[wanted].refusal(core, task):
            raise RequestError(
                f"model.attention_kernel={wanted} cannot be used: {why}; set it to auto or reference"
            )
        return Choice(wanted, "asked for")
    refused = []
    for name in (name for name in FASTEST.get(task.platform, ()) if name in table):
        why = table[name].refusal(core, task)
        if why is None:
            return Choice(name, "; ".join([f"the fastest on a {task.platform} that can", *refused]))
        refused.append(f"not {name}: {why}")
    return Choice(REFERENCE, "; ".join(refused) or f"nothing faster is known on a {task.platform}")
