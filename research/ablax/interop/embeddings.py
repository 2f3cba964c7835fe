"""Sentence embeddings of an encoder: the mean of its last states over a text's tokens, of length one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ablax.generation.steps import bucket, row_bucket
from ablax.model import Model
from ablax.shapes import Array, Float, Int, typed


def embed(
    model: Model, texts: Sequence[str], *, normalise: bool = True, batch_rows: int = 32
) -> np.ndarray:
    """One vector a text, float32 [B D] (arXiv:1908.10084, section 3: MEAN).

    Args:
      texts: each between the tokenizer's bos and eos, or cls and sep; cut where the model's rows end.
      normalise: whether vectors have length one.
      batch_rows: texts that are computed together.

    Raises:
      RequestError: if the model is causal.
    """
    model.require(False, "embed sentences")
    specials, longest = model.tokenizer.specials, model.config.data.sequence_length
    before = [] if specials.bos is None else [specials.bos]
    after = [] if specials.eos is None else [specials.eos]
    room = longest - len(before) - len(after)
    encoded = model.tokenizer.encode_batch(texts)
    rows = [[*before, *ids[:room].tolist(), *after] for ids in encoded]
    module, hyper = model.module, model.hyper

    @jax.jit
    @typed
    def mean(
        params: dict, tokens: Int[Array, "B T"], segments: Int[Array, "B T"]
    ) -> Float[Array, "B D"]:
        positions = jnp.where(segments > 0, jnp.arange(tokens.shape[1])[None], 0)
        given = (tokens, positions, segments)
        states, _ = module.apply({"params": params}, *given, hyper=hyper, method="features")
        counted = segments[:, :, None].astype(jnp.float32)
        total = (states.astype(jnp.float32) * counted).sum(1)
        return total / jnp.maximum(counted.sum(1), 1)

    # Texts of like length share a batch, so that little is padded.
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    found: dict[int, np.ndarray] = {}
    for first in range(0, len(order), batch_rows):
        batch = order[first : first + batch_rows]
        width = min(bucket(max(len(rows[batch[-1]]), 1)), longest)
        tokens = np.zeros((2, row_bucket(len(batch)), width), np.int32)
        for place, row in enumerate(batch):
            tokens[0, place, : len(rows[row])] = rows[row]
            tokens[1, place, : len(rows[row])] = 1
        vectors = np.asarray(mean(model.params, jnp.asarray(tokens[0]), jnp.asarray(tokens[1])))
        found |= dict(zip(batch, vectors, strict=False))
    vectors = np.zeros((len(rows), model.config.model.width), np.float32)
    for row, vector in found.items():
        vectors[row] = vector
    if normalise:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors
