"""Laws of the built-in text."""

import collections
import importlib
import platform
import re
import sys

import pytest
import tensorflow_datasets as tfds

from ablax.config import RequestError
from ablax.data import builtin
from ablax.data.sources import BuiltinConfig
from ablax.data.splits import SplitConfig, open_splits


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("builtin")


@pytest.mark.parametrize("name", ["python_source", "python_reference"])
def test_prepared_once_and_read_back_exactly(cache, name, capfd):
    """Catches shuffled examples, changed line ends, a network or TensorFlow, noise on stdout, and a
    second preparation."""
    expected = getattr(builtin, name)()
    for _ in range(2):
        source = BuiltinConfig(name).build(cache, offline=True)["train"]
        assert list(source) == list(expected.values())
        assert [source.name(i) for i in range(len(source))] == list(expected)
        (info,) = (cache / "tfds" / name).rglob("dataset_info.json")
        stamp = info.stat().st_mtime_ns
    assert info.stat().st_mtime_ns == stamp
    assert platform.python_version() in info.parts[-3]
    assert "tensorflow" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_the_prepared_folder_is_an_ordinary_dataset(cache):
    """Catches a folder that only our own code can read."""
    BuiltinConfig("python_reference").build(cache, offline=True)
    rows = tfds.data_source(
        f"python_reference/{builtin.content_config(builtin.python_reference()).name}",
        split="train",
        data_dir=cache / "tfds",
    )
    assert rows[0]["text"].decode() == next(iter(builtin.python_reference().values()))


def test_rule_of_the_library():
    """Catches tests, installed packages, generated tables and machine-dependent files getting in,
    the reference leaking into the source, and modules going missing."""
    modules = builtin.python_source()
    assert {"json/decoder.py", "argparse.py", "asyncio/tasks.py"} <= set(modules)
    assert list(modules) == sorted(modules)
    for name in modules:
        assert not {"test", "tests", "site-packages", "pydoc_data", "encodings"} & set(
            name.split("/")
        )
        assert not name.startswith("_sysconfigdata")
    size = sum(len(text.encode()) for text in modules.values())
    assert 5_000_000 < size < 15_000_000
    reference = builtin.python_reference()
    assert 300_000 < sum(map(len, reference.values())) < 1_000_000
    assert not set(reference.values()) & set(modules.values())


def test_the_reference_says_everything_once():
    """Catches topics that repeat other topics' sections, of which a split puts one copy on either
    side, and a section lost or cut twice."""
    paragraphs = collections.Counter()
    for text in builtin.python_reference().values():
        found = {" ".join(part.split()) for part in re.split(r"\n\s*\n", text)}
        paragraphs.update(part for part in found if len(part) >= 40)
    repeated = sum(len(part) * (count - 1) for part, count in paragraphs.items())
    # References and remarks on versions that several sections share: 361 characters in Python 3.11.
    assert repeated < 2000
    kept, topics = {}, importlib.import_module("pydoc_data.topics").topics
    for name, text in builtin.python_reference().items():
        topic = name.partition(":")[0]
        kept[topic] = kept.get(topic, "") + text
    assert all(topics[topic] == text for topic, text in kept.items())
    assert "compound" in kept
    assert not {"if", "for", "try"} & set(kept)


def test_excerpts_are_left_out_and_one_of_equals_stays():
    """Catches both of two equal documents left out, indentation that hides an excerpt, and a
    document that borrows a minority of its text."""
    documents = {
        "whole": "One paragraph.\n\nAnother of them.\n\nThe third.",
        "part": "   Another\n   of them.\n\nNew.",
        "borrows": "The third.\n\nBut mostly news of its own.",
        "equal": "The same.",
        "same": "The same.",
    }
    assert list(builtin.without_excerpts(documents)) == ["whole", "borrows", "same"]


def test_modules_are_decoded_exactly_as_they_declare(tmp_path, monkeypatch):
    """Catches universal newlines, a fixed encoding, blank files and files of one machine."""
    texts = {
        "a.py": b"x = 1\r\ny = 2\r\n",
        "b/c.py": "# coding: latin-1\n'é'\n".encode("latin-1"),
        "b/__init__.py": b"\n",
        "b/tests/d.py": b"x",
        "config-3.11-x86/e.py": b"x",
        "_sysconfigdata__linux.py": b"x",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert builtin.python_source() == {
        "a.py": "x = 1\r\ny = 2\r\n",
        "b/c.py": "# coding: latin-1\n'é'\n",
    }
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "b" / "tests"))
    (tmp_path / "b" / "tests" / "d.py").unlink()
    with pytest.raises(RequestError, match=r"holds no \.py files"):
        builtin.python_source()


def test_content_names_the_variant():
    """Catches two patched interpreters of one version that share a folder."""
    one, other = builtin.content_config({"a": "b"}), builtin.content_config({"a": "c"})
    assert one.name != other.name
    assert one.name != builtin.content_config({"ab": ""}).name


def test_splits_and_mistakes(cache):
    """Catches splits that lose or repeat documents, and an unknown name that passes."""
    splits = open_splits(
        BuiltinConfig("python_source"), SplitConfig(validation=0.05, test=0.05), cache, True
    )
    names = [source.name(i) for source in splits.values() for i in range(len(source))]
    assert sorted(names) == list(builtin.python_source())
    with pytest.raises(RequestError, match="did you mean 'python_source'"):
        BuiltinConfig("python_sorce").build(cache, True)
    with pytest.raises(RequestError, match=r"no validation split.*split\.rule=hash"):
        open_splits(BuiltinConfig("python_source"), SplitConfig(rule="given"), cache, True)
