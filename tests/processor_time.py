"""A test may take ten seconds of processor time; a longer one is marked `slow`.

Processor time, of this process with all its threads and of the children it waited for, because wall time doubles on a
machine that does something else, and then a limit either fails sound tests or catches nothing. What only waits is
bounded by pytest-timeout. Fixtures are not counted: several tests share one.
"""

import os

import pytest

LIMIT_SECONDS = 10.0
EXEMPT = ("slow", "ci")


def processor_seconds() -> float:
    """What this process and its finished children used so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    before = processor_seconds()
    result = yield
    spent = processor_seconds() - before
    if spent > LIMIT_SECONDS and not any(map(item.get_closest_marker, EXEMPT)):
        pytest.fail(
            f"took {spent:.1f} s of processor time, more than {LIMIT_SECONDS:g}: make it smaller, "
            "share what it builds in a fixture, or mark it slow (scripts/test --all runs it then)",
            pytrace=False,
        )
    return result
