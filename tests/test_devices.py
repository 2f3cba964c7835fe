"""Detection of accelerators with injected machines: never the CPU in place of an accelerator that is there."""

import os
import platform
import sys
from pathlib import Path

import pytest

from ablax import devices
from ablax.allocator import tune_malloc
from ablax.config import RequestError
from ablax.machine import Holder, Machine, look, probe

GPU = {"nvidia_driver": "550.54.15", "gpus": ("NVIDIA H100",), "gpu_nodes": ("/dev/nvidia0",)}
CUDA12 = {"jax-cuda12-plugin": "0.10.2"}


@pytest.fixture
def no_choice(monkeypatch):
    """As in a shell that does not say which platform JAX should use."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)


@pytest.mark.parametrize(
    ("machine", "environ", "expected"),
    [
        (Machine(**GPU), {}, r"no CUDA plugin; pip install 'jax\[cuda12\]' \(driver 550.54.15\)"),
        (
            Machine(**{**GPU, "nvidia_driver": "580.1"}),
            {},
            r"no CUDA plugin; pip install 'jax\[cuda13\]'",
        ),
        (
            Machine(**GPU, plugins={"jax-cuda13-plugin": "0.10.2"}),
            {},
            r"550.54.15 is too old for jax-cuda13-plugin \(needs 580\); pip install 'jax\[cuda12\]'",
        ),
        (Machine(**{**GPU, "nvidia_driver": "470.82"}), {}, "older than 525"),
        (
            Machine(**GPU, plugins=CUDA12, shadowing=("/usr/local/cuda/lib64/libcudart.so.11",)),
            {},
            "LD_LIBRARY_PATH hides the plugin's libraries with /usr/local/cuda",
        ),
        (
            Machine(**GPU, plugins=CUDA12, holders=(Holder(42, "python", 8 * 2**30),)),
            {},
            r"another process holds it: python \(pid 42\)",
        ),
        (Machine(**GPU, plugins=CUDA12), {}, "JAX says: no device found"),
        (Machine(**GPU, plugins=CUDA12), {"JAX_PLATFORMS": "cpu"}, "JAX_PLATFORMS=cpu is set"),
        (
            Machine(gpu_nodes=("/dev/nvidia0",), nvidia_error="Driver/library version mismatch"),
            {},
            r"driver does not answer \(Driver/library version mismatch\)",
        ),
        (Machine(tpu_nodes=("/dev/accel0",)), {}, "libtpu is not installed"),
        (
            Machine(
                tpu_nodes=("/dev/accel0",),
                plugins={"libtpu": "1"},
                holders=(Holder(7, "train", None),),
            ),
            {},
            r"another process holds it: train \(pid 7\)",
        ),
    ],
)
def test_the_reason_names_the_cause_and_the_remedy(machine, environ, expected, no_choice):
    """Each is refused with its own reason. Catches: falling back with a warning."""
    assert machine.accelerator
    import re

    assert re.search(expected, devices.reason(machine, environ, "no device found\nsecond line"))
    with pytest.raises(RequestError, match=r"JAX does not use .*; or run with --platform=cpu"):
        devices.ensure_accelerator(None, lambda: machine)


def test_cpu_may_be_asked_for_beside_an_accelerator():
    assert devices.ensure_accelerator("cpu", lambda: Machine(**GPU)) == "cpu"


def test_a_machine_without_accelerator_uses_its_cpu(no_choice):
    assert devices.ensure_accelerator(None, Machine) == "cpu"


def test_hidden_gpus_are_not_visible(no_choice):
    assert devices.ensure_accelerator(None, lambda: Machine(**GPU, hidden=True)) == "cpu"


def test_probe_reads_nodes_driver_and_environment(tmp_path):
    """Catches: /dev/nvidiactl taken for a GPU, and a device node taken for a driver that answers."""
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "accel_mixer"):
        (tmp_path / "dev" / name).touch()
    libraries = tmp_path / "lib64"
    libraries.mkdir()
    (libraries / "libcudnn.so.8").touch()
    smi = tmp_path / "nvidia-smi"
    smi.write_text("")
    smi.chmod(0o755)
    answers = {
        "--query-gpu=driver_version,name": (0, "550.54.15, NVIDIA H100\n550.54.15, NVIDIA H100"),
        "--query-compute-apps=pid,process_name,used_memory": (0, "42, python, 8000\n7, x, [N/A]"),
    }
    environ = {"PATH": str(tmp_path), "LD_LIBRARY_PATH": f"/nowhere:{libraries}"}
    found = probe(tmp_path, environ, lambda command: answers[command[1]])
    assert found.gpu_nodes == ("/dev/nvidia0", "/dev/nvidia1")
    assert found.tpu_nodes == ()
    assert (found.nvidia_driver, found.gpus) == ("550.54.15", ("NVIDIA H100", "NVIDIA H100"))
    assert found.holders == (Holder(42, "python", 8000 * 2**20), Holder(7, "x", None))
    assert found.shadowing == (f"{libraries}/libcudnn.so.8",)
    broken = probe(tmp_path, environ, lambda command: (9, "NVIDIA-SMI has failed"))
    assert (broken.nvidia_driver, broken.nvidia_error) == (None, "NVIDIA-SMI has failed")
    assert broken.accelerator == "cuda"
    hidden = probe(tmp_path, {**environ, "CUDA_VISIBLE_DEVICES": ""}, lambda command: (9, ""))
    assert hidden.accelerator is None


@pytest.mark.parametrize("nodes", [("accel0",), ("vfio/0", "vfio/vfio"), ("nvidia0",)])
def test_the_allocator_is_left_alone_beside_an_accelerator(tmp_path, monkeypatch, nodes):
    """Catches: a TPU of the newer kind, which shows /dev/vfio alone, taken for a machine with CPUs only."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("ABLAX_MALLOC", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    vendor = tmp_path / "sys/bus/pci/devices/0000:00:05.0/vendor"
    for path in (*(tmp_path / "dev" / name for name in nodes), vendor):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    vendor.write_text("0x1ae0\n")
    assert not tune_malloc(lambda: look(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    linux = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    assert tune_malloc(lambda: look(tmp_path)) == linux
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert not tune_malloc(Machine)


def test_holders_of_a_tpu_are_found_by_their_open_files(tmp_path):
    node = tmp_path / "dev" / "accel0"
    node.parent.mkdir()
    node.touch()
    files = tmp_path / "proc" / "77" / "fd"
    files.mkdir(parents=True)
    (files / "3").symlink_to("/dev/accel0")
    (files.parent / "comm").write_text("trainer\n")
    found = probe(tmp_path, {"PATH": ""})
    assert found.holders == (Holder(77, "trainer", None),)


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 4000000000000 bytes.", "4,000,000,000,000"),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1.50GiB.", "1,610,612,736"),
        ("Unable to allocate 2.00 MiB for an array", "2,097,152"),
        ("RESOURCE_EXHAUSTED: somewhere", "unknown"),
    ],
)
def test_out_of_memory_is_one_line_with_numbers_and_knobs(message, needed):
    line = devices.out_of_memory(RuntimeError(message))
    assert "\n" not in line
    assert f"needed {needed} bytes, free " in line
    assert all(knob in line for knob in ("training.accumulation", "model.remat", "model.dtype"))


def test_real_probe_agrees_with_the_device_nodes():
    assert bool(probe().gpu_nodes) == bool(list(Path("/dev").glob("nvidia[0-9]*")))
    assert os.getpid() not in [holder.pid for holder in probe().holders]
