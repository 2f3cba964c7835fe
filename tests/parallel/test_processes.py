"""Several real processes of one run: they agree, compute what one process computes, and end together."""

import collections
import json
import shutil
import signal
import time

import numpy as np
import pytest

from ablax.commands.flags import resolved
from ablax.data.corpus import open_corpus
from ablax.trainer import specials_of
from ablax.training.ledger import hash_rows
from ablax.training.recorded import read_ledger
from ablax.training.session import training_loader
from parallel.fleet import ends, fleet, write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("data"))


def trained(page, workdir, processes, devices, *flags):
    """The records of a run that must reach its end."""
    with fleet(page, workdir, processes, devices, flags) as started:
        for code, error in ends(started, 110):
            assert code == 0, error[-3000:]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same(found, expected):
    """Only the order of float32 additions differs between shapes: losses were seen to differ by 2e-7."""
    assert [(r["step"], r["split"]) for r in found] == [(r["step"], r["split"]) for r in expected]
    for key in ("nats_per_token", "loss", "gradient_norm", "tokens"):
        values = [[record[key] for record in run if key in record] for run in (found, expected)]
        np.testing.assert_allclose(*values, rtol=2e-6, err_msg=key)


@pytest.fixture(scope="module")
def whole(page, tmp_path_factory):
    """Six steps of one process on two devices: folder and records."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, trained(page, folder, 1, 2)


@pytest.fixture(scope="module")
def resumed(page, tmp_path_factory, whole):
    """The same run, killed after step 3, and gone on with by two processes of one device each."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(whole[0], folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    status = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(status | {"status": "running", "step": 3}))
    return folder, trained(page, folder, 2, 1)


def test_two_processes_go_on_with_the_run_of_one(whole, resumed):
    """Catches: two processes that read the same rows, or rows in another order; a checkpoint of one shape that another
    cannot read; an evaluation of a part."""
    assert_same(resumed[1], whole[1])


def test_one_process_writes(whole, resumed):
    """But for the ledger, of which each has its part: together they tell of the same batches."""
    assert len(resumed[1]) == len(whole[1])  # two that write metrics make twice as many
    parts = sorted(path.name for path in (resumed[0] / "ledger").glob("[0-9]*"))
    assert parts == ["0.bin", "1.bin"]
    assert read_ledger(resumed[0]).digest() == read_ledger(whole[0]).digest()


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes", ["data=-1", "fsdp=-1", "fsdp=4", "tensor=2", "sequence=8", "engine=pmap"]
)
def test_eight_devices_in_one_two_and_four_processes(page, tmp_path, axes):
    """With tensor=2 no process holds a whole row's parameters, with fsdp none a whole matrix."""
    flags = [f"--config.parallel.{axes}"]
    if axes == "fsdp=4":
        flags.append("--config.parallel.data=2")
    if axes in ("fsdp=-1", "sequence=8"):
        flags.append("--config.parallel.data=1")
    if axes == "sequence=8":
        # Without it rows that hold everything twice would have the same losses.
        flags.append("--config.model.residual_dropout=0.2")
    one = trained(page, tmp_path / "1x8", 1, 8, *flags)
    assert_same(trained(page, tmp_path / "2x4", 2, 4, *flags), one)
    four = tmp_path / "4x2"
    trained(page, four, 4, 2, "--config.training.steps=3", *flags)
    assert_same(trained(page, four, 2, 4, *flags), one)  # resumed in another shape


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["windows", "packed"])
def test_a_run_that_travels_reads_every_row_once_per_epoch(page, tmp_path, layout):
    """Catches: a run that goes on over other devices, or in more processes, at another batch; a row that none reads."""
    knobs = {"training.batch_size": 64, "training.steps": 10, "data.layout": layout}
    knobs |= {"evaluation.every": "0", "checkpoint.every": "0"}
    pmap = "--config.parallel.engine=pmap"
    travel = [(1, 1), (1, 8), (2, 4), (1, 4, pmap), (1, 1)]
    for leg, (processes, devices, *flags) in enumerate(travel, 1):
        given = {**knobs, "training.steps": 2 * leg}
        flags += [f"--config.{name}={value}" for name, value in given.items()]
        trained(page, tmp_path / "run", processes, devices, *flags)
    experiment = resolved(str(page), {name: str(value) for name, value in knobs.items()})
    loader = training_loader(experiment, open_corpus(experiment.data, specials_of(experiment)))
    batches = [loader.batch(step) for step in range(10)]
    expected = [hash_rows(batch, 0).to_bytes(16, "little") for batch in batches]
    assert list(read_ledger(tmp_path / "run").hashes) == expected
    rows = loader.rows_per_epoch
    assert 6 * 64 < rows < 10 * 64  # an epoch that most of the legs have a part of
    read = np.concatenate([batch["tokens"] for batch in batches])[:rows]
    whole = [loader.layout[row]["tokens"][:-1] for row in range(rows)]
    assert collections.Counter(map(bytes, read)) == collections.Counter(map(bytes, whole))


def test_a_rank_with_another_configuration_ends_all(page, tmp_path):
    """Catches: ranks that wait for ever in a collective of which each has another program."""
    own = {1: ["--config.training.clip_norm=0.5"]}
    with fleet(page, tmp_path / "run", 2, own=own) as started:
        began = time.monotonic()
        found = ends(started, 60)
    assert time.monotonic() - began < 60
    for code, error in found:
        assert code == 2, error
        assert "Traceback" not in error
        assert (
            "rank 1 has --config.training.clip_norm=0.5 where rank 0 has 1.0"
            in error.splitlines()[-1]
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rank_without_its_devices_ends_all(page, tmp_path):
    """Before the run begins. Catches: the other, which waits inside of JAX for this one's devices."""
    with fleet(page, tmp_path / "run", 2, own={1: ["--platform=tpu"]}) as started:
        for code, error in ends(started, 60):
            assert code == 2, error
            assert "--platform=tpu: this machine shows no such device" in error.splitlines()[-1]


@pytest.mark.slow
def test_a_refused_rank_ends_all(page, tmp_path):
    """A mistake that one rank alone finds, after the others have agreed with it. Catches: a timeout of minutes."""
    run = tmp_path / "run"
    trained(page, run, 2, 1)
    other = json.loads((run / "run.json").read_text())
    other["data"]["train"] = "changed"
    (run / "run.json").write_text(json.dumps(other))
    with fleet(page, run, 2, common=["--config.training.steps=12"]) as started:
        for code, error in ends(started, 60):
            assert code == 2, error
            assert "changed since the run was started" in error.splitlines()[-1]


@pytest.mark.slow
def test_process_0_that_is_not_there(page, tmp_path):
    """Catches: JAX's own end, an abort with a stack trace."""
    with fleet(page, tmp_path / "run", 2, common=["--start-timeout=3"]) as started:
        started[0].send_signal(signal.SIGKILL)
        _, error = started[1].communicate(timeout=60)
    assert started[1].returncode == 2, error
    assert "cannot reach process 0" in error.splitlines()[-1]
    assert "Traceback" not in error
