"""The kernel canary of a run in two processes: all train, or all refuse."""

import json

import pytest

from parallel.fleet import ends, fleet, write_page

CORE = "parallel.kernel_cores:Kernels"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("data"))


def run(page, workdir, kernel, devices, *parallel):
    """(exit code, stderr) of both ranks, which must end within seconds."""
    core = [f"--config.model.attention={CORE}", f"--config.model.attention_kernel={kernel}"]
    common = [f"--extend={CORE}", *core, "--config.data.layout=packed", *parallel]
    with fleet(page, workdir, 2, devices, common) as started:
        return ends(started, 40)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "devices", "parallel"),
    [
        ("right", 1, ()),
        ("right", 2, ("--config.parallel.engine=pmap",)),
        # Splash attention; each device gets its own heads.
        ("interpreted", 2, ("--config.parallel.tensor=2",)),
    ],
)
def test_a_right_kernel_trains(page, tmp_path, kernel, devices, parallel):
    """Catches: a canary that reads on one rank what lies on another; roundings of sums over devices refused."""
    for code, error in run(page, tmp_path / "run", kernel, devices, *parallel):
        assert code == 0, error[-3000:]
    status = json.loads((tmp_path / "run" / "run.json").read_text())
    assert status["status"] == "finished"
    assert status["attention_kernel"]["name"] == kernel


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "devices", "parallel", "problem"),
    [
        ("forgetful", 1, (), "does not compute the reference"),
        ("forgetful", 2, ("--config.parallel.engine=pmap",), "does not compute the reference"),
        ("forgetful_on_0", 1, (), "does not compute the reference"),
        ("forgetful_on_1", 1, (), "does not compute the reference"),
        ("forgetful_on_0", 2, (), "does not compute the reference"),
        ("forgetful_on_0", 2, ("--config.parallel.tensor=2",), "does not compute the reference"),
        ("broken_on_1", 1, (), "does not run here: division by zero"),
    ],
)
def test_a_wrong_kernel_is_refused_by_all(page, tmp_path, kernel, devices, parallel, problem):
    """Catches: a rank that refuses while the other waits for it in the next program; one that JAX aborts because both
    refuse in the same moment; a device whose rows have one segment only, so that its kernel is not tested on two."""
    for code, error in run(page, tmp_path / "run", kernel, devices, *parallel):
        assert code == 2, error[-3000:]
        assert f"model.attention_kernel={kernel} {problem}" in error.strip().splitlines()[-1]
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert not (tmp_path / "run" / "ledger").exists()  # no batch was drawn
