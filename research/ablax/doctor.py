"""A look at the machine, the libraries and the caches, for `ablax doctor` and for bug reports."""

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from ablax import devices
from ablax.config import RequestError
from ablax.data.store import cache_root
from ablax.machine import PLUGINS, Machine, probe
from ablax.run import usable_cores
from ablax.training.compilation import keep_programs

LIBRARIES = (
    "ablax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
)
LIBRARIES += ("tokenizers", "numpy", "ml-collections", "jaxtyping", "wandb", "transformers")
# A matrix product of this width on an accelerator that rounds its inputs to bfloat16 or TF32 errs by about 1e-2
# relative to the product's typical size; a broken driver or plugin errs by orders of magnitude more.
MATMUL_WIDTH, MATMUL_TOLERANCE = 512, 0.05


def matmul_check() -> dict[str, Any]:
    """Multiplies two matrices on the device and with NumPy.

    Returns:
      `relative_error` (largest error over the product's root mean square), `seconds` of the second call, `good`.
    """
    import jax.numpy as jnp
    import numpy as np

    draw = np.random.default_rng(0).standard_normal
    a = draw((MATMUL_WIDTH, MATMUL_WIDTH), np.float32)
    b = draw((MATMUL_WIDTH, MATMUL_WIDTH), np.float32)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    jnp.matmul(a, b).block_until_ready()
    start = time.perf_counter()
    product = np.asarray(jnp.matmul(a, b))
    seconds = time.perf_counter() - start
    error = float(np.abs(product - expected).max() / np.sqrt((expected**2).mean()))
    return {"relative_error": error, "seconds": seconds, "good": error < MATMUL_TOLERANCE}


def versions() -> dict[str, str | None]:
    """Installed versions of the libraries that results depend on; None for those that are missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in (*LIBRARIES, *PLUGINS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def disk(folders: dict[str, Path]) -> dict[str, Any]:
    """Where each folder lies and how many bytes are free there."""
    result = {}
    for name, folder in folders.items():
        there = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
        result[name] = {"path": str(folder), "free_bytes": shutil.disk_usage(there).free}
    return result


def diagnose(asked: str | None = None, machine: Machine | None = None) -> dict[str, Any]:
    """Everything that `ablax doctor` knows, as one JSON-able dict.

    Args:
      asked: the platform to use, or None.
      machine: what `probe` found; looked for when None.

    Returns:
      A dict whose `problems` lists, one line each, what is wrong: empty if all is well. `accelerator_refused` is true
      if JAX does not use an accelerator that is there.
    """
    machine = machine or probe()
    problems, used, found = [], None, []
    try:
        used = devices.ensure_accelerator(asked, lambda: machine)
    except RequestError as error:
        problems.append(str(error))
    refused = bool(problems)
    try:
        programs = keep_programs()
    except RequestError as error:
        programs = None
        problems.append(str(error))
    matmul: dict[str, Any] | None = None
    if devices.backend()[0]:
        import jax

        used = used or devices.backend()[0]
        found = [
            {"id": d.id, "kind": d.device_kind, "process": d.process_index} for d in jax.devices()
        ]
        matmul = matmul_check()
        if not matmul["good"]:
            problems.append(
                f"a matrix product on {used} is wrong by {matmul['relative_error']:.2g}; check the driver"
            )
    if machine.shadowing and used != "cpu":
        problems.append(f"LD_LIBRARY_PATH hides {machine.shadowing[0]}; unset it if JAX misbehaves")
    return {
        "backend": used,
        "devices": found,
        "machine": {**dataclasses.asdict(machine), "plugins": dict(machine.plugins)},
        "free_device_bytes": devices.free_memory(),
        "matmul": matmul,
        "cores": {"usable": usable_cores(), "machine": os.cpu_count()},
        "disk": disk({"working_folder": Path.cwd(), "cache": cache_root()}),
        "compilation_cache": programs,
        "environment": {
            k: os.environ[k]
            for k in sorted(os.environ)
            if k.startswith(("ABLAX_", "JAX_", "XLA_", "CUDA_VISIBLE"))
        },
        "versions": versions(),
        "python": sys.executable,
        "accelerator_refused": refused,
        "problems": problems,
    }
