"""Every knob of every source and every tokenizer changes what it reads, over the whole tables.

Catches a knob that nobody reads, and a new source or tokenizer whose knobs nobody looks at.
"""

import json

import pytest

from ablax.config import RequestError
from ablax.data.sources import SOURCES
from ablax.data.splits import SplitConfig, open_splits
from ablax.data.tokenizers import TOKENIZERS
from changed_knobs import changed_fields
from toy_dataset import prepare_toy

TEXT = "one two two\n\nThree three three\nfour <unk> é, the other thrones thread there\n\n"
WORDS = ["[UNK]", "One", "one", "two", "t", "##h", "##ree", "e"]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with something for every entry of the tables; configs name what is in it relative to it."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("train", "validation", "test", "other"):
        (folder / f"{name}.txt").write_text(f"{name}\n{TEXT}")
        rows = [{"text": f"{name} {i}", "title": f"{name} title {i}", "key": i} for i in range(3)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "bad.txt").write_bytes(b"\xff")
    (folder / "blank.txt").write_text(" \n")
    (folder / "bad.jsonl").write_text('{"text": "good", "key": 1}\n{"text": 3}\n')
    prepare_toy(folder / "datasets")
    prepare_toy(folder / "datasets", "toy_letters", counts={"train": 6, "validation": 2, "test": 1})
    prepare_toy(folder / "elsewhere", counts={"train": 7, "validation": 2, "test": 1})
    (folder / "words").write_text("three\none\n")
    (folder / "cased.txt").write_text("\n".join(WORDS))
    (folder / "uncased.txt").write_text("\n".join(word.lower() for word in WORDS[1:]) + "\n[UNK]")
    return folder


# -- sources -----------------------------------------------------------------------------------------------------------

FILES = {
    "text": {"glob": "train.txt", "validation_glob": "validation.txt", "test_glob": "test.txt"},
    "jsonl": {"glob": "train.jsonl", "validation_glob": "validation.jsonl"},
    "tfds": {"name": "toy_reviews", "data_dir": "datasets", "text_feature": "review"},
}
SOURCE_SPECIAL = {
    "builtin": {},
    "text": {
        "glob": ({}, "other.txt"),
        "validation_glob": ({}, "other.txt"),
        "test_glob": ({}, "other.txt"),
        "document": ({}, None),
        "blank": ({"document": "line"}, None),
        "on_error": ({"glob": "[bt]*.txt"}, None),
    },
    "jsonl": {
        "glob": ({}, "other.jsonl"),
        "validation_glob": ({}, "other.jsonl"),
        "test_glob": ({}, "other.jsonl"),
        "field": ({}, "title"),
        "id_field": ({}, "key"),
        "on_error": ({"glob": "bad.jsonl"}, None),
    },
    "tfds": {
        "name": ({}, "toy_letters"),
        "data_dir": ({}, "elsewhere"),
        "text_feature": ({}, "title"),
        "train_split": ({}, "test"),
        "validation_split": ({}, "test"),
        "test_split": ({}, "validation"),
    },
}


def source_cases():
    for kind, cls in SOURCES.items():
        config = cls(**FILES.get(kind, {}))
        for name, before, after in changed_fields(config, SOURCE_SPECIAL.get(kind, {})):
            yield pytest.param(name, before, after, id=f"{kind}.{name}")


def documents_of(config, cache):
    """Names and texts of every split, its own splits where the source has them."""
    rule = (
        "given" if hasattr(config, "validation_glob") or hasattr(config, "test_split") else "tail"
    )
    splits = open_splits(config, SplitConfig(rule=rule, shared="allow"), cache, offline=True)
    return {
        split: [(source.name(i), source[i]) for i in range(len(source))]
        for split, source in splits.items()
    }


@pytest.mark.parametrize(("name", "before", "after"), list(source_cases()))
def test_source_knobs(name, before, after, files, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(files)
    cache = tmp_path_factory.getbasetemp() / "sources"
    if name == "on_error":  # stops before, skips after
        with pytest.raises(RequestError, match="bad"):
            documents_of(before, cache)
        assert documents_of(after, cache)["train"]
    else:
        assert documents_of(before, cache) != documents_of(after, cache)


# -- tokenizers --------------------------------------------------------------------------------------------------------

LEARNED = {"vocab_size": ({}, 24), "training_characters": ({}, 20)}
TOKENIZER_SPECIAL = {
    "word": {"vocab_size": ({}, 3), "vocabulary": ({}, "words")},
    "bpe": {**LEARNED, "vocab_size": ({}, 258)},
    "wordpiece": LEARNED,
    "unigram": LEARNED,
    "file": {"path": ({}, "uncased.txt"), "lower_case": ({}, True)},
}


def tokenizer_cases():
    for kind, cls in TOKENIZERS.items():
        config = cls(**({"path": "cased.txt"} if kind == "file" else {}))
        for name, before, after in changed_fields(config, TOKENIZER_SPECIAL.get(kind, {})):
            yield pytest.param(before, after, id=f"{kind}.{name}")


def tokens_of(config):
    """The vocabulary that a config makes of some text, and that text in it."""
    tokenizer = config.build(iter([TEXT]), ())
    vocabulary = [tokenizer.token_text(token) for token in range(tokenizer.vocab_size)]
    return vocabulary, tokenizer.encode(TEXT).tolist()


@pytest.mark.parametrize(("before", "after"), list(tokenizer_cases()))
def test_tokenizer_knobs(before, after, files, monkeypatch):
    monkeypatch.chdir(files)
    assert tokens_of(before) != tokens_of(after)
