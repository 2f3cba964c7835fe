"""Preparing a dataset of TFDS where its files cannot be had: one line, in seconds, and nothing left behind."""

import http.server
import threading
import types

import pytest

from ablax.config import RequestError
from ablax.data import tfds_prepare
from ablax.data.sources import TfdsConfig

pytest.importorskip("importlib_resources", reason="TFDS finds its own datasets with it")


@pytest.fixture
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "*")


def builder(url, root):
    """What the check looks at of a builder."""
    return types.SimpleNamespace(
        url_infos={url: None},
        info=types.SimpleNamespace(full_name="toy/1.0.0"),
        data_dir=str(root / "toy/1.0.0"),
    )


def test_without_network_nothing_is_tried_and_nothing_is_written(tmp_path, monkeypatch, capfd):
    """Catches: TFDS's ten retries, 204 seconds and their warnings; folders of a download that never began."""
    asked = []

    def unreachable(url):
        asked.append(url)
        return False

    monkeypatch.setattr(tfds_prepare, "_answers", unreachable)
    cache = tmp_path / "cache"
    with pytest.raises(RequestError) as error:
        TfdsConfig("tiny_shakespeare").build(cache, False)
    assert asked == ["https://raw.githubusercontent.com/"]
    said = str(error.value)
    for way in ("does not answer", "ablax prepare", "--offline", "text:PATH"):
        assert way in said
    assert "\n" not in said
    assert not cache.exists()
    assert capfd.readouterr() == ("", "")


def test_a_host_that_answers_anything_is_a_network(tmp_path, no_proxy):
    """A real server that refuses HEAD. Catches: a status taken for silence, and silence for an answer."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, format, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        url = f"http://127.0.0.1:{server.server_port}/file.txt"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            tfds_prepare._refuse_without_network(builder(url, tmp_path))
        finally:
            server.shutdown()
    with pytest.raises(RequestError, match=r"127.0.0.1:.* does not answer"):
        tfds_prepare._refuse_without_network(builder(url, tmp_path))
    (tmp_path / "downloads" / "toy").mkdir(parents=True)
    (tmp_path / "downloads" / "toy" / "file.txt.INFO").touch()
    tfds_prepare._refuse_without_network(builder(url, tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        *("x/y/z:1", "../../etc", "/etc", "tiny_shakespeare/..", "tiny_shakespeare/../../x"),
        *("tiny_shakespeare:1", "tiny_shakespeare/data_dir=..", "wiki40b/en=3", "huggingface:foo"),
    ],
)
def test_what_is_no_name_is_refused_before_anything_is_touched(tmp_path, name):
    """Catches: twenty lines of TFDS and a traceback; a path out of the cache; a host that is asked although offline."""
    for offline in (True, False):
        with pytest.raises(RequestError, match="is no name of a dataset; write NAME") as error:
            TfdsConfig(name).build(tmp_path / "a" / "cache", offline)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_dataset_to_be_downloaded_by_hand_says_how(tmp_path):
    """Catches: the traceback of TFDS's assertion."""
    with pytest.raises(RequestError, match=r"Manual directory .*corpus.7z.*test.json") as error:
        TfdsConfig("samsum", text_feature="dialogue").build(tmp_path, False)
    assert "\n" not in str(error.value)
