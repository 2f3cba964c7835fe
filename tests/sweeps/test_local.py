"""How a machine is divided among cells."""

import dataclasses

import pytest

from ablax.config import RequestError
from ablax.machine import look
from ablax.sweeps import local
from ablax.sweeps.local import slots_of


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """A machine that shows two GPUs, if CUDA_VISIBLE_DEVICES lets it."""
    monkeypatch.setattr(
        local,
        "probe",
        lambda: dataclasses.replace(look(tmp_path), nvidia_driver="580", gpus=("A", "B")),
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_cells_have_the_gpus_that_may_be_seen(two_gpus, monkeypatch):
    """Catches: an empty CUDA_VISIBLE_DEVICES taken for one that is not set."""
    assert [slot["gpus"] for slot in slots_of(2)] == [("0",), ("1",)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [slot["gpus"] for slot in slots_of(2)] == [("1",)]
    for hidden in ("", " ", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not any("gpus" in slot for slot in slots_of(2))
        with pytest.raises(RequestError, match="CUDA_VISIBLE_DEVICES hides every GPU"):
            slots_of(2, "cuda")
        with pytest.raises(RequestError, match="no GPU is used here"):
            slots_of(2, gpus_per_cell=1)
