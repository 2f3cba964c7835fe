"""Samplers: pure functions of next-token logits, the same inside and outside a compiled program.

Order and meaning are those of Hugging Face transformers: logit bias, repetition penalty, tokens that may not end the
text yet, temperature, top-k, top-p, min-p, typical; OpenAI's penalties follow the repetition penalty.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ablax.config import check_seed
from ablax.generation.sampling import Controls
from ablax.shapes import Array, Bool, Float, Int, typed


@struct.dataclass
class History:
    """What penalties know of a row's tokens.

    Attributes:
      seen: those of the prompt and those that were generated; None where no step asks.
      counts: how often each was generated; None where no step asks.
    """

    seen: Bool[Array, "B V"] | None
    counts: Int[Array, "B V"] | None

    @classmethod
    def of(
        cls,
        context: Int[Array, "B C"],
        real: Bool[Array, "B C"],
        vocab_size: int,
        steps: tuple[str, ...],
    ) -> "History":
        """After the prompts, of which `real` says what is no padding."""
        shape, rows = (len(context), vocab_size), jnp.arange(len(context))[:, None]
        seen = counts = None
        if "repetition_penalty" in steps:
            seen = jnp.zeros(shape, bool).at[rows, context].max(real)
        if "counts" in steps:
            counts = jnp.zeros(shape, jnp.int32)
        return cls(seen, counts)

    def add(self, tokens: Int[Array, "B"], active: Bool[Array, "B"]) -> "History":
        """After one more token of each active row."""
        rows = jnp.arange(len(tokens))
        seen = None if self.seen is None else self.seen.at[rows, tokens].max(active)
        counts = self.counts
        if counts is not None:
            counts = counts.at[rows, tokens].add(active.astype(counts.dtype))
        return History(seen, counts)


@struct.dataclass
class Chosen:
    """Tokens that were chosen, and what the model itself gave them, before any step of a sampler.

    Attributes:
      tokens: int32 [B].
      log_probs: float32 [B], nats.
      top_tokens: int32 [B A], the A likeliest tokens, the likeliest first.
      top_log_probs: float32 [B A].
    """

    tokens: Array
    log_probs: Array
    top_tokens: Array
    top_log_probs: Array


def _column(value: Array | np.ndarray | np.generic | float, like: Array) -> Array:
    """A scalar or [B] as [B 1]."""
    return jnp.broadcast_to(jnp.asarray(value), like.shape[:1])[:, None]


def _lists(value: Array | np.ndarray, like: Array) -> Array:
    """[J] or [B J] as [B J]."""
    value = jnp.asarray(value)
    return jnp.broadcast_to(value, (len(like), value.shape[-1]))


def _keep(logits: Array, order: Array, weights: Array, need: Array) -> Array:
    """Keeps the logits that are first in `order` [B V], the largest first, up to the one with which their weights
    [B V] reach `need` [B 1], ties included.

    The threshold is found by bisection over the floats' bits, in 32 passes over the logits: exact
    like a sort, which on a CPU takes many times longer.
    """
    bits = jax.lax.bitcast_convert_type(order + 0.0, jnp.int32)  # + 0.0: no negative zero
    ranks = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats

    def halve(_, bounds):
        low, high = bounds  # what is at least `low` is enough, what is at least `high` is not
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        enough = jnp.where(ranks >= middle, weights, 0).sum(axis=-1, keepdims=True) >= need
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    bounds = ranks.min(axis=-1, keepdims=True), ranks.max(axis=-1, keepdims=True) + 1
    low, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return jnp.where(ranks >= low, logits, -jnp.inf)


@typed
def logit_bias(
    logits: Float[Array, "B V"], tokens: Int[Array, "*B J"], biases: Float[Array, "*B J"]
) -> Float[Array, "B V"]:
    """Adds biases to the logits of some tokens; those beyond the vocabulary are none."""
    rows = jnp.arange(len(logits))[:, None]
    return logits.at[rows, _lists(tokens, logits)].add(_lists(biases, logits), mode="drop")


@typed
def repetition_penalty(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty
) -> Float[Array, "B V"]:
    """Divides positive logits of seen tokens by the penalty and multiplies negative ones (CTRL,
    section 4.1).

    Args:
      seen: tokens that occur in the prompt or in what was generated.
      penalty: > 1 discourages, < 1 encourages; scalar or [B].
    """
    penalty = _column(penalty, logits)
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


@typed
def count_penalties(
    logits: Float[Array, "B V"], counts: Int[Array, "B V"], frequency, presence
) -> Float[Array, "B V"]:
    """Subtracts `frequency` for each time that a token was generated, and `presence` once if it was; scalars or [B]."""
    every, once = _column(frequency, logits) * counts, _column(presence, logits) * (counts > 0)
    return logits - every - once


@typed
def forbid(logits: Float[Array, "B V"], tokens: Int[Array, "*B E"], where) -> Float[Array, "B V"]:
    """Rules tokens out in the rows where a scalar or [B] says so."""
    rows = jnp.arange(len(logits))[:, None]
    without = logits.at[rows, _lists(tokens, logits)].set(-jnp.inf, mode="drop")
    return jnp.where(_column(where, logits), without, logits)


@typed
def temperature(logits: Float[Array, "B V"], value) -> Float[Array, "B V"]:
    """Divides the logits by the temperature (> 0); scalar or [B]."""
    return logits / _column(value, logits)


@typed
def top_k(logits: Float[Array, "B V"], k) -> Float[Array, "B V"]:
    """Keeps the k largest logits and those equal to the k-th (Fan et al. 2018); scalar or [B], 0 keeps all."""
    k = _column(k, logits)
    return _keep(logits, logits, jnp.ones_like(logits), jnp.where(k == 0, jnp.inf, k))


def _reach(p, logits: Array) -> Array:
    """The probability [B 1] to be reached: 1 keeps all, which sums that are rounded would not."""
    p = _column(p, logits)
    return jnp.where(p == 1, jnp.inf, p)


@typed
def top_p(logits: Float[Array, "B V"], p) -> Float[Array, "B V"]:
    """Keeps the likeliest tokens up to the one with which their probability reaches p, and at least
    one.

    Nucleus sampling (Holtzman et al. 2020, section 3.1); scalar or [B]. Tokens equal to the last
    kept one stay.
    """
    return _keep(logits, logits, jax.nn.softmax(logits, axis=-1), _reach(p, logits))


@typed
def min_p(logits: Float[Array, "B V"], share) -> Float[Array, "B V"]:
    """Drops tokens whose probability is below `share` of the largest one (Nguyen et al. 2024);
    scalar or [B].
    """
    floor = logits.max(axis=-1, keepdims=True) + jnp.log(_column(share, logits))
    return jnp.where(logits < floor, -jnp.inf, logits)


@typed
def typical_p(logits: Float[Array, "B V"], p) -> Float[Array, "B V"]:
    """Keeps the tokens whose surprise -log p is nearest the entropy, up to the one with which their probability
    reaches p (Meister et al. 2022, arXiv:2202.00666, section 4); scalar or [B]. Tokens as near as the last one stay.
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    probabilities = jnp.exp(log_probs)
    surprise = jnp.where(probabilities > 0, -log_probs, 0)
    entropy = (probabilities * surprise).sum(axis=-1, keepdims=True)
    return _keep(logits, -jnp.abs(-log_probs - entropy), probabilities, _reach(p, logits))


@typed
def penalise(
    logits: Float[Array, "B V"], history: History, index, controls: Controls
) -> Float[Array, "B V"]:
    """Applies the steps that are switched on and act on sampling and searching alike.

    Args:
      index: how many tokens have been generated.
    """
    steps = controls.steps
    if "logit_bias" in steps:
        logits = logit_bias(logits, jnp.asarray(controls.bias_tokens), jnp.asarray(controls.biases))
    if "repetition_penalty" in steps:
        assert history.seen is not None
        logits = repetition_penalty(logits, history.seen, controls.repetition_penalty)
    if "counts" in steps:
        assert history.counts is not None
        penalties = controls.frequency_penalty, controls.presence_penalty
        logits = count_penalties(logits, history.counts, *penalties)
    if "min_new_tokens" in steps:
        logits = forbid(logits, jnp.asarray(controls.ends), index < controls.min_new_tokens)
    return logits


@typed
def narrow(logits: Float[Array, "B V"], controls: Controls) -> Float[Array, "B V"]:
    """Applies temperature and filters, those that are switched on, in transformers' order."""
    steps = controls.steps
    if "temperature" in steps:
        value = jnp.asarray(controls.temperature)
        logits = temperature(logits, jnp.where(value == 0, 1, value))
    if "top_k" in steps:
        logits = top_k(logits, controls.top_k)
    if "top_p" in steps:
        logits = top_p(logits, controls.top_p)
    if "min_p" in steps:
        logits = min_p(logits, controls.min_p)
    if "typical_p" in steps:
        logits = typical_p(logits, controls.typical_p)
    return logits


@typed
def choose(
    logits: Float[Array, "B V"],
    history: History,
    keys: Array,
    index,
    controls: Controls,
    alternatives: int = 0,
) -> Chosen:
    """Chooses one token per row.

    Args:
      logits: float32, straight from the model.
      keys: one random key per row [B], so that a row's draw does not depend on its neighbours.
      index: how many tokens have been generated.
      alternatives: how many of the likeliest tokens are told as well.
    """
    shaped = penalise(logits, history, index, controls)
    greedy = sampled = jnp.argmax(shaped, axis=-1)
    if "sample" in controls.steps:
        sampled = jax.vmap(jax.random.categorical)(keys, narrow(shaped, controls))
    if "greedy" in controls.steps:
        sampled = jnp.where(jnp.asarray(controls.temperature) == 0, greedy, sampled)
    return measured(logits, sampled.astype(jnp.int32), alternatives)


@typed
def measured(logits: Float[Array, "B V"], tokens: Int[Array, "B"], alternatives: int) -> Chosen:
    """Tokens with their log-probabilities under the model, and those of the likeliest tokens."""
    total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    likeliest, top_tokens = jax.lax.top_k(logits, alternatives)
    return Chosen(tokens, chosen - total, top_tokens, likeliest - total[:, None])


def row_keys(seed: int, prompts: np.ndarray, samples: np.ndarray) -> Array:
    """Random keys [B] for rows, each from (seed, prompt's index, sample's index) alone.

    Raises:
      RequestError: if the seed is not in [0, 2**32).
    """
    check_seed(seed)
    key = jax.random.key(np.uint32(seed))
    fold = jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(key, p), s))
    return fold(np.asarray(prompts, np.uint32), np.asarray(samples, np.uint32))
