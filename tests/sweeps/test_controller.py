"""A sweep whose controllers and workers are killed at random gives what the undisturbed one gives."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablax.config import to_dict
from ablax.experiment import read_experiment, resolve
from ablax.lease import Lease
from ablax.run import RunFolder, code_state, write_json
from ablax.sweeps.cells import read_plan, read_record, record_path, write_plan
from ablax.sweeps.controller import Controller
from ablax.sweeps.launch import launch
from ablax.sweeps.launchers import Job
from ablax.sweeps.local import Local, slots_of
from ablax.sweeps.plan import Plan, chain, named, product, seeds
from ablax.sweeps.report import report
from ablax.sweeps.resolution import resolve_plan
from ablax.sweeps.worker import run_named
from ablax.training.recorded import compare_ledgers

PAGE = """
from ablax.experiment import base
from ablax.sweeps.plan import Plan, chain, named, product, seeds

def get_config():
    config = base(model="decoder:tiny", tokenizer="byte", source="text:{glob}")
    config.model.num_layers, config.model.width, config.model.num_heads = 1, 16, 2
    config.data.sequence_length, config.training.batch_size, config.training.steps = 16, 4, 600
    config.schedule.warmup = 2
    config.evaluation.every, config.checkpoint.every = 100, 20
    config.evaluation.documents = 4
    return config

def get_sweep():
    arms = chain(named("one"), named("wide", {{"model.feedforward_width": 80}}))
    return Plan(product(arms, seeds(3)))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    (folder / "text").mkdir()
    for index in range(40):
        (folder / "text" / f"{index}.txt").write_text(f"document {index} " * 9)
    (folder / "page.py").write_text(PAGE.format(glob=folder / "text" / "*.txt"))
    return folder / "page.py"


def controller(page: Path, sweep: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "ablax.cli", "sweep", f"--config={page}"]
    command += [f"--workdir={sweep}", "--cores_per_cell=1", "--parallel=2", "--retries=20"]
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)


def workers(sweep: Path) -> list[int]:
    """Processes that hold a cell's lease."""
    found = []
    for lease in sweep.glob("*/seed*.lease"):
        try:
            found.append(json.loads(lease.read_text())["pid"])
        except (OSError, ValueError, KeyError):
            continue
    return found


def disturbed(page: Path, sweep: Path, kills: int, count: int, log: Path) -> int:
    """Runs a sweep under `count` controllers at once, killing that many of its processes; how many were workers."""
    chance = random.Random(kills)
    alive = [controller(page, sweep, log) for _ in range(count)]
    done, of_workers, began = 0, 0, time.monotonic()
    while done < kills:
        assert time.monotonic() - began < 60 * kills, log.read_text()
        time.sleep(chance.uniform(0.3, 3.0))
        victims = workers(sweep)
        if not victims:
            if all(one.poll() is not None for one in alive):
                break
            continue
        if done % 3 == 1:
            index = chance.randrange(len(alive))
            if alive[index].poll() is None:
                alive[index].kill()
                alive[index].wait()
                alive[index] = controller(page, sweep, log)
                done += 1
            continue
        try:
            os.kill(chance.choice(victims), signal.SIGKILL)
        except ProcessLookupError:
            continue
        done, of_workers = done + 1, of_workers + 1
    codes = [one.wait(300) for one in alive]
    assert codes == [0] * count, log.read_text()
    assert done == kills, "the sweep ended before all were killed: make it longer"
    return of_workers


@pytest.mark.ci
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_whatever_ends_a_controller_its_cells_save_and_end(page, tmp_path, number, code):
    """Catches: workers that outlive their controller and hold cores, leases and GPUs."""
    sweep, log = tmp_path / "sweep", tmp_path / "log"
    running = controller(page, sweep, log)
    began = time.monotonic()
    while not any((sweep / "one").glob("seed0/checkpoints/[1-9]*")):
        assert running.poll() is None, log.read_text()
        assert time.monotonic() - began < 240
        time.sleep(0.1)
    pids = workers(sweep)
    assert pids
    running.send_signal(number)
    assert running.wait(240) == code
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
        assert time.monotonic() - began < 480, "a worker goes on"
        time.sleep(0.1)
    assert RunFolder(sweep / "one" / "seed0").status()["status"] in ("preempted", "finished")
    assert not list(sweep.glob("*/*.lease"))


@pytest.fixture(scope="module")
def undisturbed(page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert controller(page, folder / "sweep", folder / "log").wait(300) == 0, (
        folder / "log"
    ).read_text()
    return folder / "sweep"


def test_cells_run_in_processes_of_their_own_and_one_that_fails_stops_no_other(page, tmp_path):
    """Queue, snapshot, cores, logs, exit codes, with real processes; n-gram models, which need no compiler.

    Catches: a worker that imports the code as it is now; a failure that ends the sweep, or is not told; a wrong request
    that is tried again."""
    fine = chain(named("bigram", {"model": "ngram:bigram"}), named("order", {"model": "ngram"}))
    config = read_experiment(str(page)).get_config()
    log = tmp_path / "order" / "seed0.log"
    (tmp_path / "order" / "seed0").mkdir(parents=True)
    (tmp_path / "order" / "seed0" / "lock").mkdir()  # where the run's lock should be a file
    said = []
    done = launch(
        config,
        fine,
        tmp_path,
        launcher=Local(slots_of(2, "cpu")),
        platform="cpu",
        retries=0,
        say=said.append,
    )
    assert dict(done.statuses) == {"bigram/seed0": "finished", "order/seed0": "failed"}
    assert "Is a directory" in read_record(tmp_path, "order/seed0")["error"]
    assert "Is a directory" in log.read_text()
    assert any("order/seed0 failed" in line and str(log) in line for line in said)
    (code,) = (tmp_path / "code").iterdir()
    record = read_record(tmp_path, "bigram/seed0")
    assert record["identity"]["code"] == code_state(code / "ablax")["sha256"]
    run = RunFolder(tmp_path / "bigram/seed0").status()
    assert run["sweep"]["analysis_sha"] == read_plan(tmp_path)["analysis_sha"]


class Noted:
    """A launcher that notes what it is given; its cells finish when they are told to."""

    capacity, prepares = 2, False

    def __init__(self):
        self.started, self.done = [], {}

    def start(self, jobs):
        self.started += [(job.folder, job.mates) for job in jobs]

    def ended(self):
        done, self.done = self.done, {}
        return done


def test_cells_of_one_program_are_started_once(tmp_path):
    """Catches: a mate started by itself while its leader starts; one that its leader left undone and nobody does."""
    names = ("a", "b", "c", "d")
    jobs = [
        Job(n, tmp_path, (), tmp_path, tmp_path / n, "x", tuple(m for m in names[:3] if m != n))
        for n in names[:3]
    ]
    jobs.append(Job("d", tmp_path, (), tmp_path, tmp_path / "d", "y"))
    launcher, asked = Noted(), iter(range(99))

    def stop():
        turn = next(asked)
        if turn == 3:
            assert launcher.started == [("a", ("b", "c")), ("d", ())]
            for name in ("a", "b", "d"):
                write_json(record_path(tmp_path, name), {"status": "finished"})
            launcher.done = {"a": 0, "d": 0}
        if len(launcher.started) == 3:
            write_json(record_path(tmp_path, "c"), {"status": "finished"})
            launcher.done = {"c": 0}
        assert turn < 90, launcher.started

    controller = Controller(tmp_path, jobs, launcher, 0, lambda line: None)
    assert controller.run(stop) is None
    assert launcher.started[2:] == [("c", ())]
    assert {state.status for state in controller.states.values()} == {"finished"}


def test_a_cell_that_another_controller_finished_frees_those_that_wait_for_it(tmp_path):
    """Catches: a sweep that ends without the cells that a result of another controller makes wanted."""
    jobs = [Job(n, tmp_path, (), tmp_path, tmp_path / n, n) for n in ("trial", "winner")]
    launcher, asked = Noted(), iter(range(99))

    def stop():
        if (turn := next(asked)) == 0:  # after this one has read the records, and before it starts
            write_json(record_path(tmp_path, "trial"), {"status": "finished"})
        if launcher.started:
            write_json(record_path(tmp_path, "winner"), {"status": "finished"})
            launcher.done = {"winner": 0}
        assert turn < 90, launcher.started

    def held():
        return set() if record_path(tmp_path, "trial").exists() else {"winner"}

    controller = Controller(tmp_path, jobs, launcher, 0, lambda line: None, held=held)
    assert controller.run(stop) is None
    assert launcher.started == [("winner", ())]
    assert {state.status for state in controller.states.values()} == {"finished"}


def test_a_job_that_dies_before_it_begins_is_not_judged_by_an_older_record(tmp_path):
    """Catches: a cell given up for what failed yesterday."""
    old = {"status": "failed", "error": "yesterday", "again": False, "attempts": 1}
    write_json(record_path(tmp_path, "a"), old)
    launcher, said = Noted(), []

    def stop():
        if len(launcher.started) == 1:
            launcher.done = {"a": -9}
        if len(launcher.started) == 2:
            write_json(record_path(tmp_path, "a"), {"status": "finished", "attempts": 2})
            launcher.done = {"a": 0}

    job = Job("a", tmp_path, (), tmp_path, tmp_path / "a", "x")
    controller = Controller(tmp_path, [job], launcher, 1, said.append)
    assert controller.run(stop) is None
    assert controller.states["a"].status == "finished"
    assert any("signal 9; it is tried again" in line for line in said)


def test_a_process_trains_cells_together_and_records_each(page, tmp_path):
    """Catches: a mate's result that is written nowhere; a cell that somebody else runs taken along."""
    config = read_experiment(str(page)).get_config()
    config.training.steps = 4
    plan = Plan(product(named("one"), seeds(4)))
    resolved = resolve_plan(config, plan)
    values = to_dict(resolve(config))
    write_plan(tmp_path, resolved.cells, resolved.analysis, "", config=values, offline=True)
    folders = [cell.folder for cell in resolved.cells]
    write_json(record_path(tmp_path, folders[3]), {"status": "finished", "metrics": {}})
    with Lease.claim(tmp_path / "one" / "seed2.lease"):
        record = run_named(tmp_path, folders[0], folders[1:], say=lambda line: None)
    assert record["status"] == "finished"
    assert record["metrics"]["bits_per_byte"] > 0
    other = read_record(tmp_path, folders[1])
    assert other["status"] == "finished"
    assert other["metrics"]["bits_per_byte"] != record["metrics"]["bits_per_byte"]
    assert read_record(tmp_path, folders[2])["status"] == "missing"
    assert not (tmp_path / folders[3]).exists()


@pytest.mark.parametrize(
    ("kills", "count"),
    [
        pytest.param(4, 2, marks=pytest.mark.ci),
        pytest.param(20, 2, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
@pytest.mark.timeout(300)
def test_a_sweep_that_is_killed_gives_the_same_table(page, undisturbed, tmp_path, kills, count):
    """Every cell once, none lost, all bits the same: metrics, batches, parameters.

    Catches: a lease that its dead holder keeps; a record that a kill leaves as running; two workers in one cell."""
    sweep = tmp_path / "sweep"
    assert disturbed(page, sweep, kills, count, tmp_path / "log") > 0
    plan = read_plan(sweep)
    assert plan["cells"] == read_plan(undisturbed)["cells"]
    for cell in plan["cells"]:
        folder = cell["folder"]
        ours, theirs = (read_record(where, folder) for where in (sweep, undisturbed))
        assert ours["metrics"] == theirs["metrics"], folder
        assert ours["identity"] == theirs["identity"]
        assert compare_ledgers(undisturbed / folder, sweep / folder).same
        steps = [r["step"] for r in RunFolder(sweep / folder).metrics() if r["split"] == "train"]
        assert steps == sorted(set(steps)), "each step once: nobody else wrote into the folder"
        assert not list(sweep.glob("*/*.lease"))
    tables = [report(where) for where in (sweep, undisturbed)]
    for ours, theirs in zip(*(table["arms"] for table in tables), strict=True):
        assert ours["values"] == theirs["values"]
        assert (ours["difference"], ours["interval"]) == (theirs["difference"], theirs["interval"])
