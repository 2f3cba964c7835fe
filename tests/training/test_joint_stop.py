"""A wish to stop of one rank is followed by all after the same question. Real processes: tests/parallel."""

import concurrent.futures
import time
from typing import Any

import pytest

from ablax.training.joint_stop import JointStop


class Words:
    """What `JointStop` asks of ranks, in one process."""

    def __init__(self, index, count, store):
        self.index, self.count, self._store = index, count, store
        self.first = index == 0

    def put(self, key, value):
        self._store[key] = value

    def take(self, key):
        return self._store.get(key)

    def all(self, folder):
        found = {key: value for key, value in self._store.items() if key.startswith(f"{folder}/")}
        return {int(key.rsplit("/", 1)[1]): value for key, value in found.items()}


@pytest.fixture
def stops():
    store: dict[str, str] = {}
    words: list[Any] = [Words(index, 3, store) for index in range(3)]
    return [JointStop(one) for one in words]


def question_that_stops(stop, asked):
    """The number of the question that is answered with the wish; `asked` were before."""
    while stop() is None:
        asked += 1
        time.sleep(0.001)
    return asked + 1


def test_without_a_wish_nobody_stops(stops):
    """Catches: a question that waits for the others."""
    for _ in range(3):
        for stop in stops:
            assert [stop() for _ in range(5)] == [None] * 5
            stop.beat()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_follow_after_the_same_question(stops, order):
    """Ranks 0 and 1 are further than rank 2, which has the wish, and go on asking. Catches: a rank that follows its own
    wish at once, a count that is taken while questions still pass, and the lowest count instead of the highest."""
    asked = (7, 6, 4)
    for stop, times in zip(stops, asked, strict=True):
        assert [stop() for _ in range(times)] == [None] * times
    stops[2].reason = "stopped by SIGTERM"
    end = time.monotonic() + 10
    with concurrent.futures.ThreadPoolExecutor(len(stops)) as pool:
        found = [pool.submit(question_that_stops, *one) for one in zip(stops, asked, strict=True)]
        while not all(one.done() for one in found) and time.monotonic() < end:
            for rank in order:
                stops[rank].beat()
                time.sleep(0.002)
        numbers = [one.result(timeout=5) for one in found]
    assert len(set(numbers)) == 1
    assert numbers[0] > max(asked)
    assert [stop() for stop in stops] == ["stopped by SIGTERM"] * 3
