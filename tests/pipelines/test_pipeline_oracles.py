"""Pipelines give what transformers' give of the same files: shapes, keys and values."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import processors

import tiny_checkpoints
from ablax.pipelines.pipeline import pipeline

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GREEDY = {"do_sample": False, "max_new_tokens": 4}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """These programs run once; optimising them costs ten times what they do."""
    torch.set_num_threads(1)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def put_marks(file: pathlib.Path) -> None:
    """Lets a tokenizer put [CLS] and [SEP] around a text, as BERT's does."""
    library = tokenizers.Tokenizer.from_file(str(file))
    marks = [(text, library.token_to_id(text)) for text in ("[CLS]", "[SEP]")]
    library.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=marks)
    library.save(str(file))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory):
    """(theirs, ours) of a task, and of a checkpoint by name."""
    made: dict[str, pathlib.Path] = {}
    patch = pytest.MonkeyPatch()
    patch.setenv("ABLAX_CACHE", str(tmp_path_factory.mktemp("cache")))

    def make(task: str, name: str) -> tuple[Any, Any]:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("oracle") / name
            tiny_checkpoints.saved(name, made[name])
            if name == "bert":
                put_marks(made[name] / "tokenizer.json")
        theirs = transformers.pipeline(task, model=str(made[name]), device="cpu")
        return theirs, pipeline(task, str(made[name]))

    yield make
    patch.undo()


def test_text_generation(both):
    """Catches: another nesting for a list; the prompt left out; the prompt's tokens not counted."""
    theirs, ours = both("text-generation", "gpt2")
    assert ours("the fox", **GREEDY) == theirs("the fox", **GREEDY)
    prompts = ["the fox", "the quick"]
    assert ours(prompts, **GREEDY) == theirs(prompts, **GREEDY)
    new = {**GREEDY, "return_full_text": False}
    assert ours("the fox", **new) == theirs("the fox", **new)
    found = theirs("the fox", return_tensors=True, **GREEDY)
    (ids,) = ours("the fox", return_tensors=True, **GREEDY)
    assert ids["generated_token_ids"] == list(found[0]["generated_token_ids"])
    length = {"do_sample": False, "max_length": 8, "max_new_tokens": None}
    assert ours("the fox", **length) == theirs("the fox", **length)


def test_fill_mask(both):
    """Catches: another order of keys; probabilities among the targets only; a mask of several without its own list."""
    theirs, ours = both("fill-mask", "bert")
    for text, options in (
        ("the [MASK] fox", {}),
        ("the [MASK] fox", {"top_k": 2}),
        ("the [MASK] fox", {"targets": ["fox", "the"]}),
        ("the [MASK] fox [MASK]", {"top_k": 2}),
    ):
        wanted, found = theirs(text, **options), ours(text, **options)
        if isinstance(wanted[0], dict):
            wanted, found = [wanted], [found]
        for one, other in zip(wanted, found, strict=True):
            assert [list(w) for w in one] == [list(f) for f in other]
            assert [w["token"] for w in one] == [f["token"] for f in other]
            assert [w["token_str"] for w in one] == [f["token_str"] for f in other]
            np.testing.assert_allclose([w["score"] for w in one], [f["score"] for f in other], 1e-3)
            if len(wanted) == 1:
                assert [w["sequence"] for w in one] == [f["sequence"] for f in other]


def test_feature_extraction(both):
    """Catches: the marks left out; the states before the last norm."""
    theirs, ours = both("feature-extraction", "bert")
    wanted, found = theirs("the fox"), ours("the fox")
    np.testing.assert_allclose(found, wanted, atol=1e-4)  # sums in another order
    texts = ["the fox", "the quick brown fox"]
    shapes = [np.shape(one) for one in theirs(texts)]
    assert [np.shape(one) for one in ours(texts)] == shapes
