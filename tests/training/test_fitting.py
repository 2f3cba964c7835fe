"""What a model that is counted gets to count."""

import itertools
import re

import numpy as np
import pytest

import ablax
from ablax.data.documents import Texts
from ablax.data.exact_tokenizers import ByteConfig
from ablax.data.store import build_store
from ablax.data.tokenizers import build_tokenizer
from ablax.experiment import base
from ablax.training.fitting import drawn

TEXTS = ["ab" * n for n in (3, 10, 7, 1, 20, 4)]


@pytest.fixture
def store(tmp_path):
    tokenizer = build_tokenizer(ByteConfig(), iter(TEXTS), ("bos", "eos"))
    return build_store(Texts(TEXTS), tokenizer, tmp_path)


def whole(store, tokens, offsets):
    """How many of the documents are whole documents of the store."""
    known = {store.document(i).tobytes() for i in range(len(store))}
    return sum(tokens[a:b].tobytes() in known for a, b in itertools.pairwise(offsets))


@pytest.mark.parametrize("marks", [0, 1, 2])
def test_a_budget_is_spent_to_the_token(store, marks):
    """Catches marks that are not counted, and a last document that is left whole, or left out."""
    for budget in range(5, 90):
        tokens, offsets = drawn(store, budget, marks, seed=3)
        documents = len(offsets) - 1
        spent = len(tokens) + marks * documents
        # A document of which only marks would fit is empty, and has them nevertheless.
        assert budget <= spent < budget + max(1, marks)
        assert (offsets[0], offsets[-1]) == (0, len(tokens))
        assert whole(store, tokens, offsets) >= documents - 1


def test_a_budget_beyond_the_text_is_all_of_it(store):
    """Catches documents that are read twice, which would make rare n-grams look frequent."""
    tokens, offsets = drawn(store, 10**6, 2, seed=0)
    assert len(offsets) == len(TEXTS) + 1
    assert whole(store, tokens, offsets) == len(TEXTS)
    assert np.bincount(tokens).tolist() == np.bincount(store.tokens).tolist()


def test_the_seed_draws_the_documents(store):
    """Catches an order that is the same for every seed: seeds of an n-gram model would all be one."""
    lengths = {tuple(np.diff(drawn(store, 10**6, 0, seed)[1])) for seed in range(5)}
    assert len(lengths) == 5
    assert np.array_equal(drawn(store, 40, 2, 1)[0], drawn(store, 40, 2, 1)[0])


def test_a_run_counts_as_many_tokens_as_a_neural_one_reads(tmp_path):
    """Catches a run that counts the whole split whatever `read` says."""
    said = []
    config = base(model="ngram:bigram", tokenizer="byte", source="builtin:python_reference")
    config.model.read = "steps"
    config.data.sequence_length = 50
    config.training.batch_size = 4
    config.training.steps = 100
    config.evaluation.documents = 2
    ablax.train(config, tmp_path / "run", say=said.append)
    counted = re.findall(r"to ([\d,]+) tokens", "".join(said))
    assert 19_000 < int(counted[0].replace(",", "")) <= 20_000
