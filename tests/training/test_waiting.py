"""Who waits and who works, told from the frames of threads. Whole runs: tests/parallel/test_stuck_ranks.py."""

import threading

import jax
import jax.numpy as jnp
import pytest

from ablax.ranks import Ranks
from ablax.training.waiting import waits, waits_in

ARRAY, LOOP, ORBAX = "jax._src.array", "ablax.training.loop", "orbax.checkpoint._src.multihost"


@pytest.mark.parametrize(
    ("main", "behind", "expected"),
    [
        ([ARRAY, LOOP], [], True),
        (["ablax.training.parallel", LOOP], [], True),  # in a compiled call
        (["threading", "ablax.training.joint_stop", LOOP], [], True),
        # Its own program calls it, or it compiles: JAX is innermost here too.
        ([ARRAY, LOOP], ["mine", "jax._src.callback"], False),
        (["jax._src.lru_cache", "jax._src.compiler", LOOP], [], False),
        (["mine", "jax._src.debugging", "jax._src.callback", LOOP], [], False),
        # A save that goes on behind: at Orbax's barrier, or at the disk.
        (["threading", "ablax.training.checkpoints", LOOP], [ORBAX, "threading"], True),
        (["threading", "ablax.training.checkpoints", LOOP], ["pathlib", "asyncio"], False),
        # What a thread of this process asks the others says nothing about its main thread.
        (["mine", LOOP], ["ablax.ranks", "ablax.distributed"], False),
        # A function of a model's own that JAX calls while it traces.
        (["mine", "jax._src.api", LOOP], [], False),
    ],
)
def test_waits_in(main, behind, expected):
    assert waits_in(main, behind) is expected


def until(expected):
    """A thread that asks, as a heartbeat does, until the answer is the expected one, and whether it was."""
    asked, found = threading.Event(), []

    def ask():
        found.append(any(waits() == expected for _ in range(10**6) if not asked.is_set()))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return asked, thread, found


def test_who_waits_for_a_device_waits():
    """Catches: modules of JAX that are called otherwise."""
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, y: jnp.sin(y @ y), x))
    x = slow(jnp.ones((128, 128)))
    asked, thread, found = until(True)
    for _ in range(20):
        x = slow(jax.device_get(x))
    asked.set()
    thread.join()
    assert found == [True]


def test_who_waits_for_a_word_waits():
    class Store:
        """Holds one word, and looks at who asks for it."""

        def blocking_key_value_get(self, *_):
            answers = []
            thread = threading.Thread(target=lambda: answers.append(waits()))
            thread.start()
            thread.join()
            return repr(answers)

    assert Ranks(1, 2, Store()).wait("word", 0, 1.0) == "[True]"
    asked, thread, found = until(False)
    thread.join()
    asked.set()
    assert found == [True]  # it waits no more
