"""The laws of a model: `check_model`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ablax.config import RequestError
from ablax.testing.knobs import check_traced
from ablax.testing.subject import ROWS, Subject, compiled, instance, whole
from ablax.training.masks import parameter_path

TOLERANCE = 1e-4
"""Of the largest logit: float32 sums in another order, or convolutions by FFT, differ less; a leak differs more."""


def check_model(config: Any, *, vocab_size: int = 31, length: int = 8) -> None:
    """Runs the laws on a model: dtypes, padding, rows, segments, packing, causality, cached decoding, traced knobs.

    Causality is tested by exchanging tokens, which finds every influence, differentiable or not.

    Args:
      config: a frozen config dataclass with `build(vocab_size, max_length)` and `CAUSAL`, or an instance of it; small
        sizes make it quick.
      vocab_size: V of the model under test.
      length: T.

    Raises:
      AssertionError: if a law is broken.
      RequestError: if `config` is no model config, or V or T is below 7.
    """
    config = instance(config)
    if not isinstance(getattr(config, "CAUSAL", None), bool) or not hasattr(config, "build"):
        raise RequestError(
            f"{type(config).__name__} is no model config; give it `CAUSAL: ClassVar[bool]` and "
            "`build(vocab_size, max_length)` that returns a Linen module"
        )
    if length < 7 or vocab_size < 7:
        raise RequestError(f"length={length}, vocab_size={vocab_size} must both be at least 7")
    subject = Subject.of(config, vocab_size, length)
    for law in (
        check_form,
        check_rows,
        check_causality,
        check_segments,
        check_packing,
        check_padding,
        check_cache,
        check_traced,
    ):
        law(subject)


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two sets of logits are not the same result."""
    largest = max(1e-6, float(np.abs(b).max()))
    return not np.allclose(a, b, rtol=0, atol=TOLERANCE * largest)


def check_form(subject: Subject) -> None:
    """Logits float32 [B T V] and a carry."""
    inputs = map(jnp.asarray, whole(subject.tokens))
    out: Any = jax.eval_shape(
        lambda params, *batch: subject.module.apply(
            {"params": params}, *batch, hyper=subject.hyper
        ),
        subject.params,
        *inputs,
    )
    if not isinstance(out, tuple) or len(out) != 2:
        remedy = "return (logits, carry); carry is () for a model without state"
        subject.broken("shapes", f"its module returns {type(out).__name__}", remedy)
    expected = (*subject.tokens.shape, subject.vocab_size)
    if out[0].shape != expected:
        subject.broken("shapes", f"logits are {out[0].shape}", f"return [B T V], here {expected}")
    if out[0].dtype != jnp.float32:
        remedy = "end with `preferred_element_type=jnp.float32`, or cast them"
        subject.broken("float32", f"logits are {out[0].dtype}", remedy)


def check_rows(subject: Subject) -> None:
    """A row's result depends on its own tokens, and on no neighbour's."""
    before = subject.forward(*whole(subject.tokens))
    other = np.stack([subject.tokens[0], np.roll(subject.tokens[1], 3)])
    after = subject.forward(*whole(other))
    if differ(after[0], before[0]):
        remedy = "take means and norms over other axes than the batch's"
        subject.broken("rows", "another row's tokens change a row's logits", remedy)
    if not differ(after[1], before[1]):
        subject.broken("rows", "other tokens give the same logits", "read `tokens`")


def packed(subject: Subject) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two segments of 3 tokens in the first row, then padding; in the second row one such segment."""
    positions, segments = np.zeros((2, ROWS, subject.tokens.shape[1]), np.int32)
    positions[0, :6], segments[0, :6] = [0, 1, 2, 0, 1, 2], [1, 1, 1, 2, 2, 2]
    positions[1, :3], segments[1, :3] = [0, 1, 2], 1
    return subject.tokens.copy(), positions, segments


def check_segments(subject: Subject) -> None:
    """Tokens of one segment do not change the logits of another."""
    tokens, positions, segments = packed(subject)
    before = subject.forward(tokens, positions, segments)[0]
    for place in range(6):
        after = subject.forward(subject.exchanged(place), positions, segments)[0]
        others = slice(3, 6) if place < 3 else slice(0, 3)
        if differ(after[others], before[others]):
            subject.broken(
                "segments",
                f"the token at {place} changes logits of another segment in its row",
                "let tokens meet only where segment_ids are equal and not 0; reset states at position 0",
            )


def check_packing(subject: Subject) -> None:
    """A document gives the same logits behind another one as alone."""
    tokens, positions, segments = packed(subject)
    for first in (0, 3):
        tokens[1, :3] = tokens[0, first : first + 3]
        row, alone = subject.forward(tokens, positions, segments)
        if differ(row[first : first + 3], alone[:3]):
            subject.broken(
                "packing",
                f"the 3 tokens at {first} of a packed row have other logits than alone",
                "use `positions`, which restart in each segment, not the place in the row",
            )


def check_causality(subject: Subject) -> None:
    """Only its own and later logits change with a token, if the model says that it is causal."""
    if not subject.config.CAUSAL:
        return
    before = subject.forward(*whole(subject.tokens))[0]
    for place in range(1, subject.tokens.shape[1]):
        after = subject.forward(*whole(subject.exchanged(place)))[0]
        if early := [t for t in range(place) if differ(after[t], before[t])]:
            subject.broken(
                "causality",
                f"the token at {place} changes the logits at {early[0]}",
                "let a position see itself and earlier ones only, or set CAUSAL = False",
            )


def check_padding(subject: Subject) -> None:
    """A row of nothing but padding gives finite logits, loss and gradient."""
    tokens, positions, segments = whole(subject.tokens)
    segments[1] = 0
    if not np.isfinite(subject.forward(tokens, positions, segments)).all():
        remedy = "guard divisions by the number of visible tokens"
        subject.broken("padding", "a row of padding (segment 0) has logits not finite", remedy)
    loss, gradient = subject.train(subject.params, subject.hyper, tokens, positions, segments)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        if np.isfinite(loss) and not np.isfinite(leaf).all():
            subject.broken(
                "padding",
                f"beside a row of padding the gradient of {parameter_path(path)} is not finite",
                "guard divisions, roots and logarithms before `where`, not by it",
            )


def check_cache(subject: Subject) -> None:
    """Decoding gives the logits of the full pass: prompts of 3 and 2 tokens, then one token at a time."""
    law = "cached decoding"
    if not (subject.config.CAUSAL and hasattr(subject.module, "init_cache")):
        return
    tokens, length = subject.tokens, subject.tokens.shape[1]
    full = subject.forward(*whole(tokens))

    @compiled
    def run(params: Any, hyper: Any, carry: Any, *batch: Any) -> tuple[Any, Any]:
        return subject.module.apply({"params": params}, *batch, hyper=hyper, carry=carry)

    cache = subject.module.init_cache(ROWS, length)
    before = jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", cache)
    points = np.asarray([[0, 1, 2], [0, 1, 0]], np.int32)
    holes = np.asarray([[1, 1, 1], [1, 1, 0]], np.int32)
    logits, cache = run(subject.params, subject.hyper, cache, tokens[:, :3], points, holes)
    after = jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", cache)
    if before != after:
        remedy = "return the carry in the form in which it came: decoding is one compiled loop"
        subject.broken(law, f"init_cache gives {before}, a call returns {after}", remedy)
    if differ(logits[0], full[0, :3]) or differ(logits[1, :2], full[1, :2]):
        remedy = "write new tokens into the cache before they attend to it; mind the index"
        subject.broken(law, "prompts have other logits than without a cache", remedy)
    ones = np.ones((ROWS, 1), np.int32)
    for step in range(3, length):
        at = np.asarray([step, step - 1], np.int32)
        batch = tokens[[0, 1], at][:, None], at[:, None], ones
        logits, cache = run(subject.params, subject.hyper, cache, *batch)
        for row in range(ROWS):
            if differ(logits[row, 0], full[row, at[row]]):
                subject.broken(
                    law,
                    f"the token at {at[row]} has other logits from the cache than in the full pass",
                    "use the given positions; skip slots of segment 0 (holes of shorter prompts)",
                )
