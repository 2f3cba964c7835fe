"""Beam search, pure: the K likeliest continuations so far, and one token more for each.

Scores, length penalty and the end of the search are those of Hugging Face transformers' `generate`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from ablax.config import RequestError, knob
from ablax.generation.decoders import Cache, Prompts, Stepper, read_context, read_token
from ablax.generation.samplers import Chosen, History, measured, penalise
from ablax.generation.steps import Rules, history_of
from ablax.shapes import Array, Float, typed

NEVER = -1e9
"""The score of a place without a hypothesis: finite, so that sums with it are."""


@dataclasses.dataclass(frozen=True)
class Beams:
    """How continuations are searched."""

    num_beams: int = knob(1, "Continuations that are followed at once; 1 does not search.")
    length_penalty: float = knob(
        1.0, "A score is the log-probability / length ** this: above 0 prefers longer texts."
    )
    early_stopping: bool | Literal["never"] = knob(
        False,
        "Ends once there are num_beams texts (true), or once no better one is likely (false), or possible (never).",
    )

    def __post_init__(self):
        if self.num_beams < 1:
            raise RequestError(f"num_beams={self.num_beams} must be at least 1")
        if not abs(self.length_penalty) < float("inf"):
            raise RequestError(f"length_penalty={self.length_penalty} must be a finite number")
        if self.early_stopping not in (True, False, "never"):
            raise RequestError(
                f"early_stopping={self.early_stopping!r} must be true, false or never"
            )


@struct.dataclass
class Hypotheses:
    """Continuations of each prompt, the best first.

    Attributes:
      chosen: [B K N].
      counts: int32 [B K], how many tokens count.
      scores: float32 [B K]; `NEVER` and less where there is none.
    """

    chosen: Chosen
    counts: Array
    scores: Array

    @property
    def there(self) -> Array:
        """bool [B K]: where there is one."""
        return self.scores > NEVER / 2

    def take(self, places: Array) -> "Hypotheses":
        """Those at these places, int32 [B P]."""
        return jax.tree.map(lambda x: jax.vmap(lambda row, at: row[at])(x, places), self)

    def best(self, count: int) -> tuple["Hypotheses", Array]:
        """The `count` of the highest scores, the best first, and where they were."""
        places = jax.lax.top_k(self.scores, count)[1]
        return self.take(places), places


@struct.dataclass
class Search:
    """The state of a search between two tokens.

    Attributes:
      index: int32 [], how many tokens each running hypothesis has.
      running: by log-probability.
      finished: by penalised score.
      history: of the running ones [B*K].
      done: bool [B].
    """

    index: Array
    running: Hypotheses
    finished: Hypotheses
    history: History
    done: Array


def start(
    prompts: Prompts,
    steps: tuple[str, ...],
    *,
    new_tokens: int,
    vocab_size: int,
    alternatives: int,
    num_beams: int,
) -> Search:
    """The empty continuation of each prompt."""
    shape = len(prompts.last), num_beams

    def empty(*scores: float) -> Hypotheses:
        places = (*shape, new_tokens)
        chosen = Chosen(
            tokens=jnp.zeros(places, jnp.int32),
            log_probs=jnp.zeros(places, jnp.float32),
            top_tokens=jnp.zeros((*places, alternatives), jnp.int32),
            top_log_probs=jnp.zeros((*places, alternatives), jnp.float32),
        )
        first = jnp.arange(num_beams) == 0
        given = jnp.broadcast_to(jnp.where(first, *scores), shape)
        return Hypotheses(chosen, jnp.zeros(shape, jnp.int32), given.astype(jnp.float32))

    history = history_of(prompts, vocab_size, steps)
    return Search(
        index=jnp.zeros((), jnp.int32),
        # The same text K times would stay so: only one of them counts.
        running=empty(0.0, NEVER),
        finished=empty(NEVER, NEVER),
        history=jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), history),
        done=~jnp.asarray(prompts.active),
    )


def _candidates(search: Search, logits: Array, rules: Rules) -> tuple[Hypotheses, Array]:
    """The likeliest continuations by one token [B P], more than enough that K of them do not end, and the beam
    [B P] that each continues.
    """
    rows, beams = search.running.scores.shape
    vocab_size, alternatives = logits.shape[1], search.running.chosen.top_tokens.shape[-1]
    log_probs = penalise(
        jax.nn.log_softmax(logits, axis=-1), search.history, search.index, rules.controls
    )
    totals = search.running.scores[..., None] + log_probs.reshape(rows, beams, vocab_size)
    count = min(beams * max(2, 1 + rules.controls.ends.shape[-1]), beams * vocab_size)
    scores, places = jax.lax.top_k(totals.reshape(rows, -1), count)
    parents, tokens = places // vocab_size, (places % vocab_size).astype(jnp.int32)
    flat = (parents + beams * jnp.arange(rows)[:, None]).reshape(-1)
    new = measured(logits[flat], tokens.reshape(-1), alternatives)
    found = search.running.take(parents)
    chosen = jax.tree.map(
        lambda buffer, value: buffer.at[:, :, search.index].set(
            value.reshape(rows, count, *value.shape[1:])
        ),
        found.chosen,
        new,
    )
    return Hypotheses(chosen, found.counts + 1, scores), parents


@typed
def extend(
    search: Search,
    logits: Float[Array, "R V"],
    rules: Rules,
    length_penalty: Array,
    early_stopping: bool | Literal["never"],
) -> tuple[Search, Array]:
    """Adds one token to the running hypotheses.

    Args:
      logits: after each of them [B*K V].
      rules: of them [B*K]; keys are not looked at.

    Returns:
      The search, and which of the B*K each running one continues.
    """
    rows, beams = search.running.scores.shape
    found, parents = _candidates(search, logits, rules)
    limits = jnp.asarray(rules.limits).reshape(rows, beams)[:, :1]
    ends = jnp.asarray(rules.controls.ends)
    ends = jnp.broadcast_to(ends, (rows * beams, ends.shape[-1])).reshape(rows, beams, -1)[:, 0]
    last = found.chosen.tokens[:, :, search.index]
    over = (last[..., None] == ends[:, None]).any(axis=-1) | (found.counts >= limits)

    alive = dataclasses.replace(found, scores=jnp.where(over, found.scores + NEVER, found.scores))
    running, places = alive.best(beams)
    parents = jnp.take_along_axis(parents, places, axis=1)

    length = (search.index + 1).astype(jnp.float32)
    # Those behind the first K are there only to go on with.
    counted = over & found.there & (jnp.arange(found.scores.shape[1]) < beams)[None]
    counted &= ~search.done[:, None]
    scores = jnp.where(counted, found.scores / length**length_penalty, NEVER)
    old = search.finished
    merged = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b], axis=1), old, dataclasses.replace(found, scores=scores)
    )
    finished, _ = merged.best(beams)

    longest = limits[:, 0].astype(jnp.float32)
    if early_stopping == "never":
        length = jnp.where(length_penalty > 0, longest, length)
    hoped = running.scores[:, 0] / length**length_penalty
    full = finished.there.all(axis=1)
    hopeless = ~running.there[:, 0] | (full & (hoped <= finished.scores.min(axis=1)))
    done = search.done | hopeless | (search.index + 1 >= limits[:, 0])
    if early_stopping is True:
        done |= full
    flat = (parents + beams * jnp.arange(rows)[:, None]).reshape(-1)
    history = jax.tree.map(lambda x: x[flat], search.history)
    history = history.add(last_tokens(running, search.index), ~jnp.repeat(done, beams))
    return Search(search.index + 1, running, finished, history, done), flat


def last_tokens(running: Hypotheses, index: Array | int) -> Array:
    """int32 [B*K]: the token number `index` of each hypothesis."""
    return running.chosen.tokens[:, :, index].reshape(-1)


def search_all(
    model: Stepper,
    params: Any,
    hyper: Mapping[str, Any],
    prompts: Prompts,
    rules: Rules,
    length_penalty: Array,
    until: Array,
    beams: Beams,
    sizes: Mapping[str, int],
) -> Hypotheses:
    """The best continuations of each prompt.

    Args:
      rules: of each prompt's hypotheses [B*K].
      until: tokens that a hypothesis gets at most.
      beams: its length penalty is not looked at.
      sizes: `new_tokens`, `vocab_size`, `alternatives`; see `start`.
    """
    count = beams.num_beams
    search = start(prompts, rules.controls.steps, **sizes, num_beams=count)
    rows, columns = prompts.context.shape
    cache = read_context(model, params, hyper, prompts, columns + sizes["new_tokens"])
    cache = model.rows(cache, jnp.repeat(jnp.arange(rows), count))
    position = jnp.repeat(jnp.asarray(prompts.lengths), count)
    token = jnp.repeat(jnp.asarray(prompts.last), count)

    def step(carry: tuple[Search, Cache, Array]) -> tuple[Search, Cache, Array]:
        search, cache, token = carry
        active = ~jnp.repeat(search.done, count)
        places = position + search.index
        logits, cache = read_token(model, params, hyper, cache, token, places, active)
        after, parents = extend(search, logits, rules, length_penalty, beams.early_stopping)
        return after, model.rows(cache, parents), last_tokens(after.running, search.index)

    search, _, _ = jax.lax.while_loop(
        lambda carry: (carry[0].index < until) & ~carry[0].done.all(), step, (search, cache, token)
    )
    return search.finished
