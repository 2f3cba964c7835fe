"""Laws of the build lease: dead holders are replaced, living ones waited for, halves discarded."""

import json
import threading
import time

import pytest

from ablax.config import RequestError
from ablax.data.building import build_once


def is_whole(folder):
    return (folder / "whole").exists()


def fill(temporary, report):
    report(1, 1)
    (temporary / "whole").touch()


def write_lease(path, beats):
    path.write_text(
        json.dumps(
            {"machine": "elsewhere", "pid": 1, "key": "k", "beats": beats, "done": 3, "total": 9}
        )
    )


def test_silent_lease_of_another_machine_is_taken_over(tmp_path):
    """Catches: waiting for ever on a lease whose holder's machine died."""
    write_lease(tmp_path / "x.lease", beats=0)
    build_once(tmp_path / "x", fill, is_whole, heartbeat_seconds=0.02, stale_seconds=0.1)
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "whole"]


def test_renewed_lease_is_waited_for_with_its_progress(tmp_path):
    """Catches: measuring staleness from the start of the wait instead of from the last renewal."""
    folder, lease, stop = tmp_path / "x", tmp_path / "x.lease", 0.4
    write_lease(lease, beats=0)

    def other_holder():
        begin = time.monotonic()
        while time.monotonic() - begin < stop:
            write_lease(lease, beats=time.monotonic())
            time.sleep(0.02)
        folder.mkdir()
        (folder / "whole").write_text("by the other")
        lease.unlink()

    thread = threading.Thread(target=other_holder)
    thread.start()
    seen = []
    build_once(
        folder,
        fill,
        is_whole,
        lambda *at: seen.append(at),
        heartbeat_seconds=0.02,
        stale_seconds=0.2,
    )
    thread.join()
    assert (folder / "whole").read_text() == "by the other"
    assert set(seen) == {(3, 9)}


def test_failed_build_leaves_nothing_and_the_next_one_works(tmp_path):
    """Catches: building under the final name, or keeping the lease when the build raises."""

    def fail(temporary, report):
        (temporary / "half").touch()
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        build_once(tmp_path / "x", fail, is_whole)
    assert list(tmp_path.iterdir()) == []
    build_once(tmp_path / "x", fill, is_whole)
    assert is_whole(tmp_path / "x")


def test_cache_under_a_file_is_a_request_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="ABLAX_CACHE"):
        build_once(tmp_path / "file" / "x", fill, is_whole)
