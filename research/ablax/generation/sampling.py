"""How the next token is chosen: the settings, and the same as arrays for compiled code."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import struct

from ablax.config import RequestError, knob
from ablax.shapes import Array

NONE = np.int32(2**31 - 1)
"""Fills lists of tokens: beyond every vocabulary."""

STEPS = (
    "logit_bias",
    "repetition_penalty",
    "counts",
    "min_new_tokens",
    "greedy",
    "sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
)
"""What a program may contain, in the order in which it acts."""

BIASES = 300
"""Tokens that `logit_bias` may name, as in OpenAI's API."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits."""

    temperature: float = knob(1.0, "Divides the logits; 0 always takes the likeliest token.")
    top_k: int = knob(0, "Keeps the k likeliest tokens; 0 keeps all.")
    top_p: float = knob(
        1.0, "Keeps the fewest tokens whose probability reaches p (Holtzman et al. 2020)."
    )
    min_p: float = knob(
        0.0, "Drops tokens below this share of the likeliest token's probability (Nguyen 2024)."
    )
    typical_p: float = knob(
        1.0,
        "Keeps the tokens whose surprise is nearest the expected one, until their probability reaches p "
        "(arXiv:2202.00666).",
    )
    repetition_penalty: float = knob(
        1.0, "Pushes tokens seen in the prompt or the text down; 1 is off (Keskar et al. 2019)."
    )
    frequency_penalty: float = knob(
        0.0, "Subtracted from a token's logit for each time that it was generated (OpenAI's)."
    )
    presence_penalty: float = knob(
        0.0, "Subtracted from the logit of every token that was generated (OpenAI's)."
    )
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = knob(
        (), "Added to the logits of these token ids."
    )
    min_new_tokens: int = knob(0, "No token that ends the text is chosen before this many others.")

    def __post_init__(self):
        def require(name: str, good: bool, expected: str):
            if not good:
                raise RequestError(f"{name}={getattr(self, name)} must be {expected}")

        def finite(name: str) -> bool:
            return math.isfinite(getattr(self, name))

        temperature, penalty = self.temperature, self.repetition_penalty
        require("temperature", 0 <= temperature < math.inf, "a number >= 0 (0 is greedy)")
        require("top_k", self.top_k >= 0, "a whole number >= 0 (0 keeps all tokens)")
        require("top_p", 0 < self.top_p <= 1, "in (0, 1] (1 keeps all tokens)")
        require("min_p", 0 <= self.min_p <= 1, "in [0, 1] (0 keeps all tokens)")
        require("typical_p", 0 < self.typical_p <= 1, "in (0, 1] (1 keeps all tokens)")
        require("repetition_penalty", 0 < penalty < math.inf, "a number > 0 (1 is off)")
        require("frequency_penalty", finite("frequency_penalty"), "a finite number (0 is off)")
        require("presence_penalty", finite("presence_penalty"), "a finite number (0 is off)")
        require("min_new_tokens", self.min_new_tokens >= 0, "a whole number >= 0 (0 is off)")
        biases = tuple(sorted(dict(self.logit_bias).items()))
        known = all(
            isinstance(token, (int, np.integer)) and token >= 0 and math.isfinite(value)
            for token, value in biases
        )
        require("logit_bias", known, "finite numbers by token ids, whole numbers >= 0")
        if len(biases) > BIASES:
            raise RequestError(
                f"logit_bias names {len(biases)} tokens; at most {BIASES} are possible"
            )
        object.__setattr__(self, "logit_bias", biases)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises RequestError if a biased token is not in a vocabulary of this size."""
        worst = max(dict(self.logit_bias), default=0)
        if worst >= vocab_size:
            raise RequestError(
                f"logit_bias names token {worst}; the vocabulary has ids from 0 to {vocab_size - 1}"
            )

    def check_no_filter(self) -> None:
        """Raises RequestError if a setting is on that chance alone could follow."""
        for name, off in (("top_k", 0), ("top_p", 1), ("min_p", 0), ("typical_p", 1)):
            if (value := getattr(self, name)) != off:
                raise RequestError(
                    f"{name}={value} filters what is drawn, and num_beams draws nothing; leave it out"
                )
        if self.temperature not in (0, 1):
            raise RequestError(
                f"temperature={self.temperature} is for drawing, and num_beams draws nothing; leave it out"
            )

    def controls(self, ends: Sequence[int] = ()) -> "Controls":
        """The numbers as arrays; settings that switch on the same steps share one program.

        Args:
          ends: tokens that end the text.
        """
        on = {
            "logit_bias": bool(self.logit_bias),
            "repetition_penalty": self.repetition_penalty != 1,
            "counts": self.frequency_penalty != 0 or self.presence_penalty != 0,
            "min_new_tokens": self.min_new_tokens > 0,
            "greedy": self.temperature == 0,
            "sample": self.temperature != 0,
        }
        filters = {
            "temperature": self.temperature != 1,
            "top_k": self.top_k != 0,
            "top_p": self.top_p != 1,
            "min_p": self.min_p != 0,
            "typical_p": self.typical_p != 1,
        }
        if self.temperature != 0:  # the likeliest token is taken before any filter
            on |= filters
        tokens, biases = zip(*self.logit_bias, strict=True) if self.logit_bias else ((), ())
        return Controls(
            temperature=np.float32(self.temperature),
            top_k=np.int32(min(self.top_k, 2**31 - 1)),
            top_p=np.float32(self.top_p),
            min_p=np.float32(self.min_p),
            typical_p=np.float32(self.typical_p),
            repetition_penalty=np.float32(self.repetition_penalty),
            frequency_penalty=np.float32(self.frequency_penalty),
            presence_penalty=np.float32(self.presence_penalty),
            min_new_tokens=np.int32(min(self.min_new_tokens, 2**31 - 1)),
            bias_tokens=_filled(np.array(tokens, np.int32), NONE),
            biases=_filled(np.array(biases, np.float32), np.float32(0)),
            ends=_filled(np.array(ends, np.int32), NONE),
            steps=tuple(name for name in STEPS if on.get(name)),
        )


def _filled(values: np.ndarray, fill: np.generic, size: int | None = None) -> np.ndarray:
    """A list made longer: to `size`, or one of few sizes (0, 2, 8, 32, 512), so that few programs are made."""
    if size is None:
        size = next((size for size in (0, 2, 8, 32, 512) if size >= len(values)), len(values))
    return np.concatenate([values, np.full(size - len(values), fill, values.dtype)])


@struct.dataclass
class Controls:
    """`Sampling` for compiled code: scalars and lists, or one of them per row [B], and which steps are in the program.

    Every step does nothing to a row whose value switches it off, so that rows of different settings share a program.

    Attributes:
      bias_tokens: int32 [J], or [B J], tokens whose logits get `biases`; `NONE` where there are fewer.
      biases: float32, as many.
      ends: int32 [E], or [B E], tokens that end a row; `NONE` where there are fewer.
      steps: those of `STEPS` that the program contains.
    """

    temperature: Array | np.float32
    top_k: Array | np.int32
    top_p: Array | np.float32
    min_p: Array | np.float32
    typical_p: Array | np.float32
    repetition_penalty: Array | np.float32
    frequency_penalty: Array | np.float32
    presence_penalty: Array | np.float32
    min_new_tokens: Array | np.int32
    bias_tokens: Array | np.ndarray
    biases: Array | np.ndarray
    ends: Array | np.ndarray
    steps: tuple[str, ...] = struct.field(pytree_node=False)

    @classmethod
    def stack(cls, rows: Sequence["Controls"]) -> "Controls":
        """Controls of single rows as those of a batch."""
        fills = {"bias_tokens": NONE, "biases": np.float32(0), "ends": NONE}
        fields = [field.name for field in dataclasses.fields(cls) if field.name != "steps"]
        stacked = {}
        for name in fields:
            values = [np.asarray(getattr(row, name)) for row in rows]
            if name in fills:
                size = max(map(len, values))
                values = [_filled(value, fills[name], size) for value in values]
            stacked[name] = np.stack(values)
        on = {step for row in rows for step in row.steps}
        return cls(**stacked, steps=tuple(step for step in STEPS if step in on))

    def take(self, rows: np.ndarray) -> "Controls":
        """The controls of these rows; the same where all rows share them."""
        return jax.tree.map(lambda value: value[rows], self) if np.ndim(self.temperature) else self
