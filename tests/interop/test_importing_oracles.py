"""Imported models are what transformers makes of the same files: logits, greedy texts, embeddings, losses in training;
exported ones are what it saved."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_checkpoints
from ablax.experiment import resolve
from ablax.interop.exporting import export_hf
from ablax.interop.importing import import_hf
from ablax.interop.table import FAMILIES
from ablax.model import Model, load
from ablax.training import session
from tiny_checkpoints import CASES, DECODERS, FAMILY, ROOM, TEXT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 290, (2, 12)).astype(np.int32)
# float32 logits of up to 8, sums in another order: 8e-6 seen.
close = functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=0)


class Pair(NamedTuple):
    """One model, theirs and ours."""

    theirs: Any
    folder: pathlib.Path
    run: pathlib.Path
    ours: Model


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """These programs run once; optimising them costs ten times what they do."""
    torch.set_num_threads(1)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory):
    """Name -> `Pair`, made when it is first asked for."""

    @functools.cache
    def make(name: str) -> Pair:
        place = tmp_path_factory.mktemp(name)
        theirs = tiny_checkpoints.saved(name, place / "theirs")
        import_hf(str(place / "theirs"), place / "run", say=lambda line: None)
        return Pair(theirs, place / "theirs", place / "run", load(place / "run"))

    return make


def their_logits(model: Any, mask: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
    given = {} if positions is None else {"position_ids": torch.tensor(positions.astype(np.int64))}
    with torch.no_grad():
        return model(
            torch.tensor(TOKENS.astype(np.int64)),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            **given,
        ).logits.numpy()


def test_every_family_is_compared():
    assert set(FAMILY.values()) == set(FAMILIES)


@pytest.mark.parametrize("name", CASES)
def test_logits(name, pairs):
    """With padding on the right, and before a decoder's text.

    Catches: thirds of GPT-NeoX's projection taken over all heads, rotary pairs interleaved, a window that is one too
    long, the first rows of RoBERTa's table, sublayers one after the other.
    """
    pair = pairs(name)
    module, hyper = pair.ours.module, pair.ours.hyper

    @jax.jit
    def forward(params, positions, segments):
        tokens = jnp.asarray(TOKENS)
        return module.apply({"params": params}, tokens, positions, segments, hyper=hyper)[0]

    mask = np.ones_like(TOKENS)
    mask[1, 7:] = 0
    for left in (False, True) if name in DECODERS else (False,):
        shown = mask[:, ::-1] if left else mask
        positions = np.maximum(np.cumsum(shown, 1) - 1, 0).astype(np.int32)
        # RoBERTa numbers padding otherwise, where nothing is compared.
        theirs = their_logits(pair.theirs, shown, positions if name in DECODERS else None)
        ours = np.asarray(forward(pair.ours.params, positions, shown))
        close(ours[shown > 0], theirs[shown > 0])
        assert np.abs(theirs[shown > 0]).max() > 1  # logits that say something


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, pairs, tmp_path):
    """Tensors are the same bits under the same names, nothing missing and nothing added, and so are logits.

    Catches: a tied head that is written, a shard that is left out, a transposition in one direction only.
    """
    pair = pairs(name)
    found = export_hf(pair.run, tmp_path / "out", shard_bytes=20000 if name == "llama" else 10**9)
    assert found["family"] == FAMILY[name]
    assert (len(found["files"]) > 5) == (name == "llama")
    again, said = type(pair.theirs).from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = pair.theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    mask = np.ones_like(TOKENS)
    np.testing.assert_array_equal(
        their_logits(again.eval(), mask, None), their_logits(pair.theirs, mask, None)
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        tokenizer(TEXT)["input_ids"]
        == (transformers.AutoTokenizer.from_pretrained(pair.folder)(TEXT)["input_ids"])
    )
    assert tokenizer.special_tokens_map == pair_specials(pair)


def pair_specials(pair: Pair) -> dict[str, str]:
    return transformers.AutoTokenizer.from_pretrained(pair.folder).special_tokens_map


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_texts(name, pairs):
    """Two prompts of different lengths decoded together. Catches: keys stored in the cache before they are turned."""
    pair = pairs(name)
    prompts = ["def f(x): ret", "the"]
    completions = pair.ours.generate(prompts, max_new_tokens=8, temperature=0)
    for prompt, (completion,) in zip(prompts, completions, strict=True):
        ids = pair.ours.tokenizer.encode(prompt).tolist()
        if pair.ours.marked:
            ids.insert(0, pair.ours.tokenizer.specials.bos)
        given = torch.tensor([ids])
        made = pair.theirs.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=8, do_sample=False
        )
        assert list(completion.tokens) == made[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", ["gpt2", "bert", "qwen2"])
def test_tokens(name, pairs):
    """Catches: marks that a library puts around a text, a lower-cased vocabulary, ids that are shifted."""
    pair = pairs(name)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(pair.folder)
    corpus = ["", " ", TEXT, "Ünïcödé 漢字 🙂👍🏽 \u202e\n\n\t x", "x" * 5000 + " \r\n" * 50]
    ours = pair.ours.tokenizer
    for text in corpus:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text).tolist() == expected
    assert ours.vocab_size == ROOM
    assert ours.decode([ROOM - 1]) == ""  # a row of the embedding that no text has


def batch_of(rng: np.random.Generator, causal: bool) -> dict[str, np.ndarray]:
    """Rows of different lengths; a masked model predicts some places, a causal one all."""
    tokens = rng.integers(0, 290, (4, 12)).astype(np.int32)
    places = np.broadcast_to(np.arange(12, dtype=np.int32), (4, 12))
    segments = (places < np.array([[12], [12], [9], [5]])).astype(np.int32)
    targets = np.roll(tokens, -1, 1) if causal else rng.integers(0, 290, (4, 12)).astype(np.int32)
    counted = segments * np.roll(segments, -1, 1) if causal else segments * (places % 3 == 0)
    counted = counted * (places < 11)
    return {
        "tokens": tokens,
        "targets": targets,
        "loss_weights": counted.astype(np.float32),
        "positions": places * segments,
        "segment_ids": segments,
    }


def their_losses(model: Any, batches: list[dict[str, np.ndarray]]) -> list[float]:
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for batch in batches:
        given = {name: torch.tensor(rows) for name, rows in batch.items()}
        mask = given["segment_ids"].long()
        logits = model(given["tokens"].long(), attention_mask=mask).logits
        nats = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), given["targets"].long().flatten(), reduction="none"
        )
        weights = given["loss_weights"].flatten()
        loss = (nats * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_a_hundred_steps_of_adamw_are_pytorchs(name, tmp_path):
    """From the same weights, over the same batches, clipped and decayed.

    Catches: decay of biases, a mean over all places, epsilon inside the root, a step that is counted from zero.
    """
    off = ("embd_pdrop", "attn_pdrop", "resid_pdrop") if name == "gpt2" else ()
    off = ("hidden_dropout_prob", "attention_probs_dropout_prob") if name == "bert" else off
    theirs = tiny_checkpoints.saved(name, tmp_path / "theirs", 0.05, **dict.fromkeys(off, 0.0))
    import_hf(str(tmp_path / "theirs"), tmp_path / "run", say=lambda line: None)
    changes = {
        "optimizer.learning_rate": 1e-3,
        "optimizer.b2": 0.95,
        "optimizer.weight_decay": 0.1,
        "schedule.kind": "constant",
        "schedule.warmup": 0,
        "training.batch_size": 4,
        "training.steps": 100,
        "data.sequence_length": 12,
        **({"objective.rate": 0.4} if name == "bert" else {}),
    }
    model = load(tmp_path / "run")
    experiment = resolve(model.config, changes)
    program = session.build_program(experiment, ROOM, session.Clock(100, 48, 1.0))
    shapes = session.abstract_state(program, experiment)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    state = state.replace(params=model.params, hyper=session.hyper_of(experiment))
    step = jax.jit(program.step)
    batches = [batch_of(np.random.default_rng(i % 4), name != "bert") for i in range(100)]
    losses = []
    for batch in batches:
        state, metrics = step(state, batch)
        sums = metrics["loss"]
        losses.append(float(sums.total) / int(sums.count))
    expected = their_losses(theirs, batches)
    assert expected[0] - expected[-1] > 0.5  # something was learned
    np.testing.assert_allclose(losses, expected, atol=1e-4, rtol=0)
