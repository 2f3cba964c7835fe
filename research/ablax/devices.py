"""Which accelerator this machine has, whether JAX uses it, and if not, why.

`reason` explains from what `ablax.machine.probe` saw; `ensure_accelerator` refuses to go on the CPU in place of an
accelerator that is there.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ablax.config import RequestError
from ablax.machine import Machine, probe

PLATFORMS = {"cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}
# Oldest Linux driver of each CUDA major version (NVIDIA, CUDA Toolkit release notes, table "minor version
# compatibility").
OLDEST_DRIVER = {13: 580, 12: 525}


def reason(machine: Machine, environ: Mapping[str, str] = os.environ, error: str = "") -> str:
    """Why JAX does not use the accelerator that `machine` shows, and what to do.

    Args:
      error: what JAX said, shown when nothing else explains it.
    """
    kind = machine.accelerator
    cuda = [
        int(name.removeprefix("jax-cuda")[:2])
        for name in machine.plugins
        if name.startswith("jax-cuda")
    ]
    chosen = environ.get("JAX_PLATFORMS", "")
    if chosen and "cuda" not in chosen and "gpu" not in chosen and "tpu" not in chosen:
        return f"JAX_PLATFORMS={chosen} is set; unset it"
    if kind == "tpu":
        if "libtpu" not in machine.plugins:
            return "libtpu is not installed; pip install 'ablax[tpu]'"
        return _held(machine) or _said(error)
    if machine.nvidia_driver is None:
        said = f" ({machine.nvidia_error})" if machine.nvidia_error else ""
        return f"the NVIDIA driver does not answer{said}; load or update it until nvidia-smi works"
    major = int(re.match(r"\d+", machine.nvidia_driver)[0])  # type: ignore[index]
    fitting = next((version for version, oldest in OLDEST_DRIVER.items() if major >= oldest), None)
    if fitting is None:
        return f"driver {machine.nvidia_driver} is older than {OLDEST_DRIVER[12]}, which JAX needs; update it"
    if not cuda:
        return f"JAX has no CUDA plugin; pip install 'jax[cuda{fitting}]' (driver {machine.nvidia_driver})"
    if min(cuda) > fitting:
        return (
            f"driver {machine.nvidia_driver} is too old for jax-cuda{min(cuda)}-plugin (needs "
            f"{OLDEST_DRIVER[min(cuda)]}); pip install 'jax[cuda{fitting}]' or update the driver"
        )
    if machine.shadowing:
        return f"LD_LIBRARY_PATH hides the plugin's libraries with {machine.shadowing[0]}; unset LD_LIBRARY_PATH"
    return _held(machine) or _said(error)


def _held(machine: Machine) -> str:
    if not machine.holders:
        return ""
    names = ", ".join(f"{h.name} (pid {h.pid})" for h in machine.holders)
    return f"another process holds it: {names}; end it or wait"


def _said(error: str) -> str:
    return f"JAX says: {error.splitlines()[0]}" if error else "no reason found; run ablax doctor"


def choose_platform(platform: str | None) -> None:
    """Tells JAX which platform to use; must come before its first array.

    Raises:
      RequestError: if JAX already runs on another one.
    """
    if platform is None:
        return
    import jax

    if platform not in PLATFORMS:
        raise RequestError(f"--platform={platform} must be one of cpu, cuda, tpu")
    jax.config.update("jax_platforms", PLATFORMS[platform])
    if platform == "cpu" and jax.default_backend() != "cpu":
        raise RequestError(
            "--platform=cpu comes too late: JAX already runs on the accelerator; start anew"
        )


def backend() -> tuple[str | None, str]:
    """(`cpu`, `cuda` or `tpu`; "") if JAX runs, else (None; what it said)."""
    import jax

    try:
        return {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend()), ""
    except RuntimeError as error:
        return None, str(error)


def ensure_accelerator(platform: str | None = None, look: Callable[[], Machine] = probe) -> str:
    """Starts JAX on the asked platform, or on the accelerator that this machine shows.

    Args:
      platform: `cpu`, `cuda`, `tpu` or None for whatever there is.
      look: looks at the machine.

    Returns:
      The platform that JAX uses.

    Raises:
      RequestError: if the platform cannot be had, or if JAX would use the CPU although an accelerator is visible.
    """
    environ = dict(os.environ)
    choose_platform(platform)
    used, error = backend()
    if platform == "cpu" or (used in ("cuda", "tpu") and platform in (None, used)):
        return used or "cpu"
    machine = look()
    if machine.accelerator and platform in (None, machine.accelerator):
        shown = machine.gpus or machine.gpu_nodes or machine.tpu_nodes
        why = reason(machine, environ if platform is None else {}, error)
        raise RequestError(f"JAX does not use {shown[0]}: {why}; or run with --platform=cpu")
    if platform or used is None:
        hidden = " (CUDA_VISIBLE_DEVICES hides every GPU)" if machine.hidden else ""
        asked = (
            f"--platform={platform}"
            if platform
            else f"JAX_PLATFORMS={environ.get('JAX_PLATFORMS')}"
        )
        raise RequestError(
            f"{asked}: this machine shows no such device{hidden}; run ablax doctor, or --platform=cpu"
        )
    return used


def free_memory() -> int | None:
    """Bytes free on the first device; on the CPU, those that the system would give."""
    import jax

    stats = jax.devices()[0].memory_stats() if backend()[0] else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        available = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(available[1]) * 1024 if available else None


def out_of_memory(error: BaseException) -> str:
    """One line for an allocation that failed: needed and free bytes, and the three knobs to try first."""
    text = str(error)
    asked = re.search(
        r"(?:allocat\w*|Unable to allocate)\s+([\d.]+)\s*([KMGT]i?)?(?:B|bytes?)?", text
    )
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needed = "unknown"
    if asked:
        needed = f"{float(asked[1]) * units[(asked[2] or '')[:1]]:,.0f}"
    free = free_memory()
    return (
        f"out of memory: needed {needed} bytes, free {'unknown' if free is None else format(free, ',')} bytes; try a "
        "larger training.accumulation (or smaller training.batch_size), model.remat=full, model.dtype=bfloat16"
    )
