"""Decoding in Python: the steps of the compiled loop, one by one, for models that are no Linen modules."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from ablax.generation.beams import Beams, extend, last_tokens, start
from ablax.generation.decoders import Decoder, Prompts
from ablax.generation.loop import CHUNK, FIELDS, SIZES, Decoded, Watch, empty, limits_of, searched
from ablax.generation.reading import read_stepwise
from ablax.generation.sampling import Controls
from ablax.generation.steps import Rules, bucket, draw, ended, history_of
from ablax.shapes import Array

_draw = jax.jit(draw, static_argnames="alternatives")
_history_of = jax.jit(history_of, static_argnames=("vocab_size", "steps"))
_add = jax.jit(lambda history, tokens, active: history.add(tokens, active))
_ended = jax.jit(ended)
_begin = jax.jit(start, static_argnames=("steps", "num_beams", *SIZES))
_extend = jax.jit(extend, static_argnames="early_stopping")


@dataclasses.dataclass(frozen=True, eq=False)
class Stepwise:
    """`Engine` of any `Decoder`: the same steps as `Compiled`, in Python."""

    decoder: Decoder
    max_length: int | None = None

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Array,
        controls: Controls,
        max_new_tokens: int | Sequence[int],
        watch: Watch | None = None,
        alternatives: int = 0,
    ) -> Decoded:
        """See `Engine`."""
        rows, limits = len(prompts), limits_of(max_new_tokens, len(prompts))
        last, rules = int(limits.max()), Rules(keys, controls, limits)  # type: ignore[arg-type]
        logits, cache = self.decoder.start(prompts, last)
        padded = Prompts.pad(prompts, rows, bucket(max(map(len, prompts)) - 1))
        history = _history_of(padded, vocab_size=logits.shape[1], steps=controls.steps)
        found, done = empty(rows, last, alternatives), np.zeros(rows, bool)
        for index in range(last):
            new = _draw(logits, history, index, rules, alternatives=alternatives)
            for name in FIELDS:
                getattr(found, name)[~done, index] = np.asarray(getattr(new, name))[~done]
            tokens, active = found.tokens[:, index], ~done
            np.add(found.counts, active, out=found.counts)
            history = _add(history, tokens, active)
            done |= active & np.asarray(_ended(tokens, found.counts, rules))
            if watch and (index + 1) % CHUNK == 0:
                done |= watch(found)
            if done.all() or index + 1 == last:
                break
            logits, cache = self.decoder.step(cache, tokens)
        return found

    def read(self, prompts: Sequence[Sequence[int]], alternatives: int = 0) -> Decoded:
        """See `Engine`."""
        columns = read_stepwise(self.decoder, prompts, alternatives)
        found = empty(len(prompts), len(columns), alternatives)
        found.counts[:] = [len(prompt) - 1 for prompt in prompts]
        for index, column in enumerate(columns):
            for name in FIELDS:
                getattr(found, name)[:, index] = getattr(column, name)
        return found

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        controls: Controls,
        max_new_tokens: int | Sequence[int],
        beams: Beams,
        alternatives: int = 0,
    ) -> Decoded:
        """See `Engine`."""
        limits, last = limits_of(max_new_tokens, len(prompts)), int(np.max(max_new_tokens))
        fill = np.repeat(np.arange(len(prompts)), beams.num_beams)
        rules = Rules(None, controls.take(fill), limits[fill])  # type: ignore[arg-type]
        logits, cache = self.decoder.start(prompts, last)
        logits, cache = logits[fill], self.decoder.rows(cache, fill)
        padded = Prompts.pad(prompts, len(prompts), bucket(max(map(len, prompts)) - 1))
        sizes = {"vocab_size": logits.shape[1], "alternatives": alternatives}
        search = _begin(
            padded, steps=controls.steps, new_tokens=last, num_beams=beams.num_beams, **sizes
        )
        penalty = np.float32(beams.length_penalty)
        for index in range(last):
            search, parents = _extend(search, logits, rules, penalty, beams.early_stopping)
            if bool(search.done.all()) or index + 1 == last:
                break
            cache = self.decoder.rows(cache, np.asarray(parents))
            logits, cache = self.decoder.step(cache, np.asarray(last_tokens(search.running, index)))
        return searched(search.finished, len(prompts))
