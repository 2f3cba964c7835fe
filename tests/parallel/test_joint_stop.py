"""Two real processes of one run, of which one is asked to end."""

import signal
import time

import pytest

from parallel.fleet import ends, fleet, write_page


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(exit code, stderr) of both, after SIGTERM to the second alone, and the steps of the checkpoints."""
    folder = tmp_path_factory.mktemp("joint")
    page, workdir = write_page(folder), folder / "run"
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 60
    changes = ("training.steps=1000000", "checkpoint.every=0", "evaluation.every=0")
    with fleet(page, workdir, 2, common=[f"--config.{change}" for change in changes]) as ranks:
        while not (metrics.is_file() and metrics.stat().st_size):
            assert time.monotonic() < deadline
            assert all(rank.poll() is None for rank in ranks)
            time.sleep(0.05)
        ranks[1].send_signal(signal.SIGTERM)
        found = ends(ranks, 60)
    return found, [p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]


def test_one_signal_ends_all_ranks_after_the_same_step(stopped):
    """Catches: a rank that leaves alone, so that the others wait in a collective for ever; JAX's own handler, which
    swallows SIGTERM once processes are joined; ranks that stop after different steps."""
    found, saved = stopped
    assert len(saved) == 1
    for code, said in found:
        assert code == 75, said[-3000:]
        assert f"stopped by SIGTERM: saved at step {saved[0]} of" in said.splitlines()[-1]
