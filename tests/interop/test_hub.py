"""Names on the hub, without a network: the hub's own cache, as a download leaves it."""

import pathlib

import pytest

import tiny_checkpoints
from ablax.config import RequestError
from ablax.interop.hub import locate
from ablax.interop.importing import import_hf
from ablax.run import RunFolder

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """A cache with one repository; tests are offline (conftest.py)."""
    assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--somebody--tiny"
    tiny_checkpoints.written("gpt2", repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hub"


def test_a_name_is_taken_from_the_cache_and_its_commit_is_recorded(cache, tmp_path):
    """Catches: a branch's name that is recorded, under which other weights may lie tomorrow."""
    found = import_hf("somebody/tiny", tmp_path / "run", say=lambda line: None)
    assert found["revision"] == COMMIT
    assert RunFolder(tmp_path / "run").status()["imported"]["revision"] == COMMIT
    pinned = locate("somebody/tiny", COMMIT)
    assert pinned.folder.name == COMMIT


def test_a_folder_comes_first(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody" / "tiny").mkdir(parents=True)
    assert locate("somebody/tiny").revision is None
    with pytest.raises(RequestError, match="is a folder and has no revision 'main'"):
        locate("somebody/tiny", "main")


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("somebody/else", None, "neither a folder nor in the hub's cache"),
        ("somebody/tiny", "v2", "at revision v2 is neither a folder nor in the hub's cache"),
        ("./nowhere", None, "is no folder, and no name on the hub"),
        ("a/b/c", None, "is no folder, and no name on the hub"),
        ("no name", None, "cannot be had from the hub"),
    ],
)
def test_what_is_nowhere_is_one_line(name, revision, message, cache):
    with pytest.raises(RequestError, match=message) as refusal:
        locate(name, revision)
    assert "\n" not in str(refusal.value)
