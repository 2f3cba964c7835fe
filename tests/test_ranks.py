"""What ranks must agree on, and how soon all end if one differs. Real processes: tests/parallel/test_processes.py."""

import concurrent.futures
import threading
import time
from typing import Any

import jax
import pytest

import ablax
from ablax.config import RequestError
from ablax.ranks import Ranks
from ablax.run import RunFolder
from ablax.training.together import facts, start_of

SECONDS = 10.0


class Store:
    """JAX's key-value store, in one process."""

    def __init__(self):
        self.words, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            if key in self.words and not allow_overwrite:
                raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
            self.words[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key):
        if key not in self.words:
            raise jax.errors.JaxRuntimeError("NOT_FOUND")
        return self.words[key]

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.words, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return self.words[key]


@pytest.fixture
def together():
    """Runs a function of each of three ranks at once; what it returned or raised, and after how many seconds."""
    store = Store()
    ranks = [Ranks(index, 3, store) for index in range(3)]

    def run(function):
        def timed(rank):
            began = time.monotonic()
            try:
                found: Any = function(rank)
            except Exception as error:
                found = error
            return found, time.monotonic() - began

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            return list(pool.map(timed, ranks))

    return run


@pytest.mark.parametrize(
    ("item", "value"),
    [("code", "b"), ("version of jax", "0.9"), ("devices", "4 x cpu"), ("newest checkpoint", None)],
)
def test_one_that_differs_ends_all_in_seconds_with_the_difference(together, item, value):
    """Catches: a rank that goes on because it does not differ from rank 0, and an item that is not compared."""
    same = {"code": "a", "version of jax": "0.10", "devices": "8 x cpu", "newest checkpoint": 5}
    for _ in range(2):
        assert [found for found, _ in together(lambda rank: rank.agree("start", same))] == [
            None
        ] * 3
    ended = together(
        lambda rank: rank.agree("start", same | ({item: value} if rank.index == 2 else {}))
    )
    for error, seconds in ended:
        assert isinstance(error, RequestError)
        assert f"rank 2 has {item}={value!r} where rank 0 has {same[item]!r}" in str(error)
        assert "\n" not in str(error)
        assert seconds < SECONDS


def test_one_that_fails_ends_those_that_wait_for_it(together):
    """Catches: an hour of waiting for a rank that has ended, and an exit code that is not its own."""

    def meet(rank):
        if rank.index == 1:
            rank.fail(RequestError("data.source=nowhere is not there"))
            return
        rank.agree("data", {})

    (first, waited), _, (third, _) = together(meet)
    for error in (first, third):
        assert isinstance(error, RequestError)
        assert str(error) == "rank 1: data.source=nowhere is not there"
    assert waited < SECONDS


def test_what_is_compared(tmp_path):
    """Catches: libraries, code, devices, data or the checkpoint left out of the comparison."""
    found = start_of(ablax.resolve(ablax.base()))
    assert {
        "--config.seed",
        "code",
        "version of jax",
        "version of numpy",
        "devices",
    } <= found.keys()
    assert found["devices"].startswith(f"{jax.local_device_count()} x ")
    folder = RunFolder(tmp_path)
    for step in ("3", "12", "damaged"):
        (folder.checkpoints / step).mkdir(parents=True)

    class Corpus:
        fingerprints = staticmethod(lambda: {"train": "abc"})

    corpus: Any = Corpus()
    assert facts(folder, corpus) == {
        "data fingerprint of train": "abc",
        "run": False,
        "newest checkpoint": 12,
    }
