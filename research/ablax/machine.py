"""What accelerators a machine shows: a look at device nodes, driver, plugins and environment, without JAX."""

import dataclasses
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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
    driver, error, gpus, holders, seen = None, None, (), (), look(root, environ)
    if shutil.which("nvidia-smi", path=environ.get("PATH")):
        code, text = run(["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"])
        rows = [line.split(", ", 1) for line in text.splitlines() if ", " in line]
        if code == 0 and rows:
            driver, gpus = rows[0][0], tuple(name for _, name in rows)
            holders = _gpu_holders(run)
        else:
            error = text.splitlines()[0] if text else f"nvidia-smi exits with {code}"
    return dataclasses.replace(
        seen,
        nvidia_driver=driver,
        nvidia_error=error,
        gpus=gpus,
        plugins=_plugins(),
        shadowing=_shadowing(environ.get("LD_LIBRARY_PATH", "")),
        holders=holders or _node_holders(root, seen.tpu_nodes),
    )


def look(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Machine:
    """The part of `probe` that takes no time: device nodes and the environment. Never raises."""
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "none", "NoDevFiles")
    # TPU machines show /dev/accel*, newer ones /dev/vfio/*.
    tpu_nodes = _nodes(root, "accel[0-9]*") or _tpu_vfio(root)
    return Machine(gpu_nodes=_nodes(root, "nvidia[0-9]*"), tpu_nodes=tpu_nodes, hidden=hidden)


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
