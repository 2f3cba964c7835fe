"""Which accelerator this machine has, whether JAX uses it, and if not, why.

`probe` looks at the machine without JAX; `reason` explains from what it saw; `ensure_accelerator` refuses to go on
the CPU in place of an accelerator that is there.
"""

import dataclasses
import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ablax.config import RequestError

PLATFORMS = {"cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}
# Oldest Linux driver of each CUDA major version (NVIDIA, CUDA Toolkit release notes, table "minor version
# compatibility").
OLDEST_DRIVER = {13: 580, 12: 525}
PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu")
SHADOWING = (
    "libcudart.so*",
    "libcudnn*.so*",
    "libcublas*.so*",
    "libnccl.so*",
    "libcusparse.so*",
    "libcupti.so*",
)


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds an accelerator.

    Attributes:
      memory: bytes that it holds there, or None if the driver does not say.
    """

    pid: int
    name: str
    memory: int | None


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a look at the machine found, before JAX.

    Attributes:
      nvidia_driver: the driver's version if `nvidia-smi` answered.
      nvidia_error: what `nvidia-smi` said if it did not answer.
      gpus: names of the GPUs that the driver lists.
      gpu_nodes: `/dev/nvidia0` and so on.
      tpu_nodes: `/dev/accel0` or `/dev/vfio/0` and so on.
      plugins: installed JAX plugins and their versions.
      shadowing: libraries on LD_LIBRARY_PATH that hide the plugin's own.
      holders: processes that hold an accelerator.
      hidden: whether CUDA_VISIBLE_DEVICES hides every GPU.
    """

    nvidia_driver: str | None = None
    nvidia_error: str | None = None
    gpus: tuple[str, ...] = ()
    gpu_nodes: tuple[str, ...] = ()
    tpu_nodes: tuple[str, ...] = ()
    plugins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shadowing: tuple[str, ...] = ()
    holders: tuple[Holder, ...] = ()
    hidden: bool = False

    @property
    def accelerator(self) -> str | None:
        """`cuda` or `tpu` if this machine shows one."""
        if (self.nvidia_driver or self.gpu_nodes) and not self.hidden:
            return "cuda"
        return "tpu" if self.tpu_nodes else None


def _run(command: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout or done.stderr).strip()


def probe(
    root: Path = Path("/"),
    environ: Mapping[str, str] = os.environ,
    run: Callable[[Sequence[str]], tuple[int, str]] = _run,
) -> Machine:
    """Looks at device nodes, `nvidia-smi`, installed plugins and LD_LIBRARY_PATH. Never raises.

    Args:
      root: where `dev` and `proc` are.
      environ: the environment to look at.
      run: runs a command and returns (exit code, output).
    """
    driver, error, gpus, holders = None, None, (), ()
    if shutil.which("nvidia-smi", path=environ.get("PATH")):
        code, text = run(["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"])
        rows = [line.split(", ", 1) for line in text.splitlines() if ", " in line]
        if code == 0 and rows:
            driver, gpus = rows[0][0], tuple(name for _, name in rows)
            holders = _gpu_holders(run)
        else:
            error = text.splitlines()[0] if text else f"nvidia-smi exits with {code}"
    tpu_nodes = _nodes(root, "accel[0-9]*") or _tpu_vfio(root)
    return Machine(
        nvidia_driver=driver,
        nvidia_error=error,
        gpus=gpus,
        gpu_nodes=_nodes(root, "nvidia[0-9]*"),
        tpu_nodes=tpu_nodes,
        plugins=_plugins(),
        shadowing=_shadowing(environ.get("LD_LIBRARY_PATH", "")),
        holders=holders or _node_holders(root, tpu_nodes),
        hidden=environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "none", "NoDevFiles"),
    )


def _nodes(root: Path, pattern: str) -> tuple[str, ...]:
    return tuple(sorted(f"/dev/{path.name}" for path in (root / "dev").glob(pattern)))


def _tpu_vfio(root: Path) -> tuple[str, ...]:
    """VFIO nodes, if what they pass through is Google's (vendor 0x1ae0); other devices use VFIO too."""
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    if not any(path.read_text().strip() == "0x1ae0" for path in vendors):
        return ()
    return tuple(sorted(f"/dev/vfio/{p.name}" for p in (root / "dev/vfio").glob("[0-9]*")))


def _gpu_holders(run: Callable[[Sequence[str]], tuple[int, str]]) -> tuple[Holder, ...]:
    query = "--query-compute-apps=pid,process_name,used_memory"
    code, text = run(["nvidia-smi", query, "--format=csv,noheader,nounits"])
    rows = [line.split(", ") for line in text.splitlines()] if code == 0 else []
    return tuple(
        Holder(int(row[0]), row[1], int(row[2]) * 2**20 if row[2].isdigit() else None)
        for row in rows
        if len(row) == 3 and row[0].isdigit() and int(row[0]) != os.getpid()
    )


def _node_holders(root: Path, nodes: Sequence[str]) -> tuple[Holder, ...]:
    """Processes with one of these device nodes open, as far as /proc lets us see."""
    found = {}
    for link in (root / "proc").glob("[0-9]*/fd/*") if nodes else ():
        try:
            pid = int(link.parts[-3])
            if os.readlink(link) in nodes and pid != os.getpid():
                found[pid] = Holder(pid, (root / f"proc/{pid}/comm").read_text().strip(), None)
        except OSError:
            continue
    return tuple(found.values())


def _plugins() -> dict[str, str]:
    versions = {}
    for name in PLUGINS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _shadowing(library_path: str) -> tuple[str, ...]:
    folders = [Path(folder) for folder in library_path.split(":") if folder]
    return tuple(
        str(path)
        for folder in folders
        for pattern in SHADOWING
        for path in sorted(folder.glob(pattern))
    )


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
