"""The sizes at which training steps are measured."""

import dataclasses
import json
import os
import string

from ablax.machine import probe


@dataclasses.dataclass(frozen=True)
class Setting:
    """One GPT and its batch, the same on every side.

    Attributes:
      layers, heads, width, length, batch, vocab: L, N, D, T, B, V.
      dtype: of matrix products and activations; parameters are float32.
      threads: of PyTorch on a CPU; JAX takes as many as the process may use.
    """

    layers: int = 4
    heads: int = 4
    width: int = 128
    length: int = 64
    batch: int = 12
    vocab: int = 65
    dtype: str = "float32"
    threads: int = 2

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Setting":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))

    def alphabet(self) -> str:
        """V characters: printable ones where they suffice, else a plane for private use."""
        if self.vocab <= 65:
            return string.printable[: self.vocab]
        return "".join(chr(0xF0000 + i) for i in range(self.vocab))


def on_gpu() -> bool:
    """Whether this machine shows a GPU that is not switched off by JAX_PLATFORMS=cpu."""
    return os.environ.get("JAX_PLATFORMS") != "cpu" and probe().accelerator == "cuda"


def choose_setting(quick: bool) -> Setting:
    """nanoGPT's character-level CPU setting (its README), or GPT-2 124M in bfloat16 on a GPU."""
    threads = len(os.sched_getaffinity(0))
    if quick:
        return Setting(layers=1, heads=2, width=32, length=16, batch=4, threads=threads)
    if on_gpu():
        return Setting(12, 12, 768, 1024, 16, 50_257, "bfloat16", threads)
    return Setting(threads=threads)
