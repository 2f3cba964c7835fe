"""Laws of the file sources and of TensorFlow Datasets as sources."""

import dataclasses
import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ablax.config import RequestError
from ablax.data.sources import JsonlConfig, TextConfig, Texts, TfdsConfig
from ablax.data.splits import SplitConfig, open_splits
from ablax.data.tfrecord import masked_crc32c, read_tfrecords
from toy_dataset import COUNTS, prepare_toy, review

TEXT = "one\r\ntwo \n\n \t\nthrée\nfour\n\n\n🙂 five"


def open_text(pattern, **knobs):
    return TextConfig(str(pattern), **knobs).build(Path("unused"), True)["train"]


def open_jsonl(pattern, **knobs):
    return JsonlConfig(str(pattern), **knobs).build(Path("unused"), True)["train"]


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.encode())
    return path


@pytest.mark.parametrize(
    ("document", "blank", "expected"),
    [
        ("file", "drop", [TEXT]),
        ("paragraph", "drop", ["one\r\ntwo ", "thrée\nfour", "🙂 five"]),
        ("line", "drop", ["one", "two ", "thrée", "four", "🙂 five"]),
        ("line", "keep", ["one", "two ", "", " \t", "thrée", "four", "", "", "🙂 five"]),
    ],
)
def test_a_document_is_exact(text_file, document, blank, expected):
    """Catches files opened with universal newlines (`\\r\\n` lost), stripped lines, and blank lines
    of spaces taken for text."""
    assert list(open_text(text_file, document=document, blank=blank)) == expected


def test_names_tell_file_and_line(text_file):
    """Catches names counted in documents instead of lines."""
    lines = open_text(text_file, document="line")
    assert [lines.name(i) for i in range(3)] == ["a.txt:1", "a.txt:2", "a.txt:5"]
    assert open_text(text_file).name(0) == "a.txt"
    with pytest.raises(IndexError):
        lines[5]


def test_gzip_and_place_do_not_change_the_fingerprint(tmp_path):
    """Catches a fingerprint over paths, over packed bytes, or without the document rule."""
    for folder, opener in (("x", open), ("y/z", gzip.open)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(3):
            with opener(tmp_path / folder / f"{number}.txt", "wb") as file:
                file.write(f"{number}\n{TEXT}".encode())
    plain = open_text(tmp_path / "x" / "*.txt")
    packed = open_text(tmp_path / "y" / "**" / "*.txt")
    assert list(plain) == list(packed)
    assert plain.fingerprint == packed.fingerprint == Texts(list(plain)).fingerprint
    assert plain.fingerprint != open_text(tmp_path / "x" / "*.txt", document="line").fingerprint
    assert plain.fingerprint != Texts(list(plain)[::-1]).fingerprint
    assert Texts(["ab", "c"]).fingerprint != Texts(["a", "bc"]).fingerprint
    assert Texts(["a"]).fingerprint != Texts(["a "]).fingerprint


def test_documents_of_files_too_large_to_hold(text_file, monkeypatch):
    """Catches wrong offsets when a document is read from disk instead of memory."""
    held = list(open_text(text_file, document="paragraph"))
    monkeypatch.setattr("ablax.data.text_source.HELD_BYTES", 0)
    assert list(open_text(text_file, document="paragraph")) == held


def test_jsonl_fields_and_names(tmp_path):
    """Catches a field that is ignored and ids that are not."""
    rows = [{"body": "a\r\nb", "key": 7}, {"body": "é🙂", "key": "k"}]
    text = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    source = open_jsonl(tmp_path / "*.gz", field="body", id_field="key")
    assert list(source) == ["a\r\nb", "é🙂"]
    assert [source.name(0), source.name(1)] == ["7", "k"]
    assert open_jsonl(tmp_path / "*.gz", field="body").name(1) == "a.jsonl.gz:2"


GOOD = b'{"text": "fine"}\n'
BAD_TEXT = {
    "binary": (b"a\0b", r"bad: binary file \(NUL at byte 1\)"),
    "utf8": (b"caf\xe9 noir\n", "bad: invalid UTF-8 at byte 3"),
    "empty": (b" \n\n", "no documents in 1 files"),
    "truncated": (gzip.compress(os.urandom(4000))[:2000], "bad: damaged or truncated gzip file"),
}
BAD_JSON = {
    "broken": (GOOD + b'{"text": "x\n', "bad:2: broken JSON at column"),
    "array": (GOOD + b"[1]\n", "bad:2: a JSON object was expected, found list"),
    "missing": (GOOD + b'{"txt": "x"}\n', "bad:2: no field 'text'; it has 'txt'"),
    "number": (GOOD + b'{"text": 3}\n', "bad:2: field 'text' holds int, not text"),
    "surrogate": (GOOD + b'{"text": "\\ud800"}\n', "bad:2: field 'text' holds half of a surrogate"),
    "utf8": (GOOD + b'{"text": "\xe9"}\n', "bad: invalid UTF-8 at byte 27"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text_is_refused_with_its_place(tmp_path, case):
    """Catches errors="replace", offsets in characters, and empty corpora that pass."""
    data, message = BAD_TEXT[case]
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(RequestError, match=message) as error:
        open_text(tmp_path / "bad")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_is_refused_or_skipped_and_counted(tmp_path, case):
    """Catches a skip that drops the good lines too, or is not counted."""
    data, message = BAD_JSON[case]
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(RequestError, match=message) as error:
        open_jsonl(tmp_path / "bad")
    assert "\n" not in str(error.value)
    source = open_jsonl(tmp_path / "bad", on_error="skip")
    assert list(source) == ["fine"]
    assert [name for name, _ in source.skipped] == ["bad:2"]


def test_offset_of_bad_utf8_counts_from_the_start_of_the_file(tmp_path):
    """Catches the offset within the line being reported as the file's."""
    (tmp_path / "bad").write_bytes("é\nok\n".encode() + b"x\xff\n")
    with pytest.raises(RequestError, match="invalid UTF-8 at byte 7"):
        open_text(tmp_path / "bad", document="line")
    source = open_text(tmp_path / "bad", document="line", on_error="skip")
    assert list(source) == ["é", "ok"]
    assert source.skipped == [("bad:3", "invalid UTF-8 at byte 7")]


def test_no_file_is_a_wrong_request(tmp_path):
    """Catches an empty corpus where a glob matches nothing."""
    with pytest.raises(RequestError, match=r"no file matches .*nothing\*'"):
        open_text(tmp_path / "nothing*")
    with pytest.raises(RequestError, match="no files named"):
        open_text("")


# -- TensorFlow Datasets -------------------------------------------------------------------------


def write_tfrecords(path, iterator):
    with open(path, "wb") as file:
        for _, record in iterator:
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", masked_crc32c(length)) + record)
            file.write(struct.pack("<I", masked_crc32c(record)))


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def prepared(request, tmp_path_factory):
    """A folder of a dataset that somebody prepared in one of TFDS's formats."""
    from tensorflow_datasets.core import file_adapters

    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_adapters.TfRecordFileAdapter, "write_examples", write_tfrecords)
        files = prepare_toy(folder, file_format=request.param)
    assert list(files.glob(f"*.{request.param}-*"))
    return folder


def test_tfds_gives_its_splits_without_tensorflow(prepared, tmp_path, monkeypatch):
    """Catches a reader that needs TensorFlow, loses bytes, order or records, or converts again."""
    config = TfdsConfig("toy_reviews", data_dir=str(prepared), text_feature="review")
    for _ in range(2):
        splits = open_splits(config, SplitConfig(rule="given"), tmp_path, True)
        assert {name: list(source) for name, source in splits.items()} == {
            name: [review(count, i) for i in range(count)] for name, count in COUNTS.items()
        }
        assert splits["train"].name(3) == "toy_reviews/train:3"
        monkeypatch.setattr("ablax.data.tfds_prepare.read_tfrecords", None)
    assert len(list(tmp_path.rglob("dataset_info.json"))) <= 1
    assert "tensorflow" not in sys.modules
    named = dataclasses.replace(config, test_split="tset")
    with pytest.raises(RequestError, match="no split 'tset'; it has: "):
        open_splits(named, SplitConfig(rule="given"), tmp_path, True)
    with pytest.raises(RequestError, match=r"test_split is read only with split\.rule=given"):
        open_splits(dataclasses.replace(config, test_split="train"), SplitConfig(), tmp_path, True)
    part = TfdsConfig("toy_reviews", str(prepared), "review", train_split="train[:50%]+test")
    assert len(part.build(tmp_path, True)["train"]) == 13


def test_tfds_mistakes_are_one_line(prepared, tmp_path):
    """Catches a guess of the feature, and stack traces of TFDS for wrong names."""

    def refuse(match, *arguments, **knobs):
        with pytest.raises(RequestError, match=match) as error:
            TfdsConfig(*arguments, data_dir=str(prepared), **knobs).build(tmp_path, True)
        assert "\n" not in str(error.value)

    refuse("set text_feature to the one to read, of: review, title", "toy_reviews")
    refuse("no text feature 'stars'; it has: review, title", "toy_reviews", text_feature="stars")
    refuse("did you mean toy_reviews", "toy_revews")
    refuse("did you mean tiny_shakespeare", "tiny_shakespear")
    refuse("not prepared under .*ablax prepare", "tiny_shakespeare")
    refuse("no split 'dev'; it has: ", "toy_reviews", text_feature="review", train_split="dev")


def test_a_builder_of_tfds_runs_without_tensorflow(tmp_path, monkeypatch):
    """`tfds:tiny_shakespeare` opens its file through tf.io.gfile. Catches a preparation that needs
    TensorFlow for that alone; only the download is replaced here."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources", reason="TFDS finds its own datasets with it")
    (tmp_path / "input.txt").write_text("ab\n" * 400, encoding="utf-8")
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download", lambda *_: tmp_path / "input.txt"
    )
    monkeypatch.setattr("ablax.data.tfds_prepare._answers", lambda url: True)
    config = TfdsConfig("tiny_shakespeare", train_split="train+validation+test")
    splits = open_splits(config, SplitConfig(rule="tail", validation=0.1), tmp_path, False)
    assert "".join(splits["train"]) == "ab\n" * 360
    assert "".join(splits["validation"]) == "ab\n" * 40
    assert "tensorflow" not in sys.modules


def test_tfrecord_framing_is_checked(tmp_path):
    """Catches a reader that ends quietly at a cut file, or believes a damaged length."""
    assert (
        masked_crc32c(b"123456789")
        == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    )
    records = [b"one", b"", b"three" * 100]
    write_tfrecords(tmp_path / "good", enumerate(records))
    assert list(read_tfrecords(tmp_path / "good")) == records
    data = (tmp_path / "good").read_bytes()
    for cut in (5, 17, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:cut])
        with pytest.raises(RequestError, match="cut short at byte"):
            list(read_tfrecords(tmp_path / "cut"))
    (tmp_path / "flipped").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(RequestError, match="damaged TFRecord at byte 0"):
        list(read_tfrecords(tmp_path / "flipped"))


def test_sources_import_no_heavy_library():
    """Catches a top-level import of TFDS, JAX or TensorFlow, which the commands' start would pay."""
    code = (
        "import sys, ablax.data.sources, ablax.data.splits;"
        "print([m for m in ('jax', 'tensorflow_datasets', 'tensorflow') if m in sys.modules])"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.stdout.strip() == "[]", done.stderr
