"""Laws of the token store.

As a script it is a builder process: `test_store.py ROOT LOG SECONDS_PER_DOCUMENT`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ablax.data.store
from ablax.config import RequestError
from ablax.data.store import build_store, cache_root, open_store

TEXTS = ("", "plain", "naïve façade", "日本語", "🙂" * 5, "a\r\nb\x00")


class Documents:
    """A source that writes down each document it hands out."""

    fingerprint = "documents"

    def __init__(self, texts=TEXTS, log=None, seconds=0.0):
        self.texts, self.log, self.seconds = texts, log, seconds

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        time.sleep(self.seconds)
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{index}\n")
        return self.texts[index]

    def name(self, index):
        return f"document-{index}"


class Utf8:
    """Token = byte + shift."""

    def __init__(self, vocab_size=256, shift=0, lossless=True, lower=False):
        self.vocab_size, self.shift, self.lossless, self.lower = vocab_size, shift, lossless, lower
        self.fingerprint = f"utf8 {vocab_size} {shift} {lossless} {lower}"

    def encode_batch(self, texts):
        texts = [text.lower() if self.lower else text for text in texts]
        return [
            np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self.shift for text in texts
        ]

    def decode(self, ids):
        return (ids - self.shift).astype(np.uint8).tobytes().decode()


def start_builder(root, log, seconds):
    command = [sys.executable, __file__, str(root), str(log), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(Path(ablax.data.store.__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_documents_bytes_and_tokens_are_exact(tmp_path):
    """Catches: counting characters (or tokens) as bytes; offsets off by one document."""
    store = build_store(Documents(), Utf8(), tmp_path)
    assert len(store) == len(TEXTS)
    assert store.byte_counts.tolist() == [len(text.encode()) for text in TEXTS]
    for index, text in enumerate(TEXTS):
        assert Utf8().decode(store.document(index)) == text
    assert store.tokens.dtype == np.uint16
    assert store.lossless
    assert store.round_trip_mismatches == 0
    with pytest.raises(IndexError, match="document 6 of 6"):
        store.document(6)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_width_follows_the_vocabulary(tmp_path, vocab_size, dtype):
    """Catches: `<` for `<=` at 65,536; a wrap of the largest token."""
    tokenizer = Utf8(vocab_size, shift=vocab_size - 256)
    store = build_store(Documents(["ÿ", "a"]), tokenizer, tmp_path)
    assert store.tokens.dtype == dtype
    assert tokenizer.decode(store.document(0)) == "ÿ"


def test_built_once_and_opened_afterwards(tmp_path):
    """Catches: a key that is not stable, or one that leaves out the tokenizer."""
    log = tmp_path / "log"
    progress = []
    first = build_store(
        Documents(log=log), Utf8(), tmp_path, progress=lambda *at: progress.append(at)
    )
    again = build_store(Documents(log=log), Utf8(), tmp_path)
    assert first.fingerprint == again.fingerprint
    assert len(log.read_text().split()) == len(TEXTS)
    assert progress[0] == (0, len(TEXTS))
    assert progress[-1] == (len(TEXTS), len(TEXTS))
    other = build_store(Documents(log=log), Utf8(300), tmp_path)
    assert other.fingerprint != first.fingerprint


def test_claims_of_losslessness_are_checked(tmp_path):
    """Catches: believing `tokenizer.lossless` without decoding."""
    lossy = build_store(Documents(["ab", "aB", "AB"]), Utf8(lower=True), tmp_path)
    assert lossy.round_trip_mismatches == 2
    assert lossy.first_mismatch == "document-1"
    assert not lossy.lossless
    unchecked = build_store(Documents(["ab"]), Utf8(lossless=False), tmp_path)
    assert unchecked.round_trip_mismatches is None
    assert not unchecked.lossless


def test_bad_documents_are_named(tmp_path):
    """Catches: storing a token that the model has no row for."""
    with pytest.raises(RequestError, match=r"document-1 became token 98, .*vocabulary of 98"):
        build_store(Documents(["a", "ab"]), Utf8(98), tmp_path)
    with pytest.raises(RequestError, match="document-0 became token -3"):
        build_store(Documents(["a"]), Utf8(shift=-100), tmp_path)
    with pytest.raises(RequestError, match="document-0 holds a lone surrogate at character 1"):
        build_store(Documents(["a\ud800"]), Utf8(), tmp_path)
    with pytest.raises(RequestError, match="2 documents and no tokens"):
        build_store(Documents(["", ""]), Utf8(), tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "remove", "garble"])
def test_damaged_store_is_rebuilt(tmp_path, damage):
    """Catches: trusting meta.json without looking at the arrays' sizes."""
    whole = build_store(Documents(), Utf8(), tmp_path)
    (folder,) = (tmp_path / "tokens").iterdir()
    if damage == "truncate":
        (folder / "tokens.bin").write_bytes((folder / "tokens.bin").read_bytes()[:-1])
    elif damage == "remove":
        (folder / "offsets.bin").unlink()
    else:
        (folder / "meta.json").write_text("{")
    with pytest.raises(RequestError, match="delete it"):
        open_store(folder)
    rebuilt = build_store(Documents(), Utf8(), tmp_path)
    np.testing.assert_array_equal(rebuilt.offsets, whole.offsets)
    assert Utf8().decode(rebuilt.document(3)) == TEXTS[3]


def test_builder_killed_midway_is_replaced(tmp_path):
    """Catches: building under the final name; waiting on the lease of a dead process."""
    log = tmp_path / "log"
    builder = start_builder(tmp_path, log, 0.5)
    while not log.exists():
        assert builder.poll() is None
        time.sleep(0.01)
    builder.kill()
    builder.communicate()
    assert any(path.suffix == ".lease" for path in (tmp_path / "tokens").iterdir())
    begin = time.monotonic()
    store = build_store(Documents(), Utf8(), tmp_path)
    assert time.monotonic() - begin < 1
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [store.fingerprint]


def test_concurrent_builders_build_once(tmp_path):
    """Catches: no lease at all: both processes would read every document."""
    log = tmp_path / "log"
    builders = [start_builder(tmp_path, log, 0.1) for _ in range(2)]
    outputs = [json.loads(builder.communicate()[0]) for builder in builders]
    assert outputs[0] == outputs[1]
    assert sorted(log.read_text().split()) == [str(index) for index in range(len(TEXTS))]


def test_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ABLAX_CACHE", raising=False)
    assert cache_root() == tmp_path / "ablax"
    monkeypatch.setenv("ABLAX_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


if __name__ == "__main__":
    built = build_store(
        Documents(log=sys.argv[2], seconds=float(sys.argv[3])), Utf8(), Path(sys.argv[1])
    )
    print(json.dumps([built.fingerprint, built.tokens.tolist()]))
