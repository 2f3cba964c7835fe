"""Checks the accelerator, its driver and plugin, who holds it, the libraries, the disk and the caches."""

import argparse

from ablax.commands import flags, output
from ablax.commands.output import DONE, FAILED, REFUSED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax doctor`."""
    flags.add_platform(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the diagnosis; 2 if JAX does not use an accelerator that is there, 1 if it computes wrongly."""
    from ablax.doctor import diagnose

    found = diagnose(args.platform)
    output.emit(found)
    machine, gib = found["machine"], 2**30
    rows = [
        ("backend", found["backend"] or "none"),
        ("devices", ", ".join(f"{d['kind']} {d['id']}" for d in found["devices"]) or "none"),
        ("NVIDIA driver", machine["nvidia_driver"] or machine["nvidia_error"] or "none"),
        ("JAX plugins", ", ".join(f"{k} {v}" for k, v in machine["plugins"].items()) or "none"),
        (
            "held by",
            ", ".join(f"{h['name']} (pid {h['pid']})" for h in machine["holders"]) or "nobody",
        ),
        (
            "matrix product",
            "not tried" if not found["matmul"] else "right" if found["matmul"]["good"] else "WRONG",
        ),
        ("memory free", _gib(found["free_device_bytes"])),
        ("cores", f"{found['cores']['usable']} of {found['cores']['machine']}"),
        *(
            (f"disk: {k}", f"{v['path']}, {v['free_bytes'] / gib:.1f} GiB free")
            for k, v in found["disk"].items()
        ),
        ("compilation cache", str(found["compilation_cache"] or "off")),
        *((k, v) for k, v in found["versions"].items() if v and k in ("python", "jax", "flax")),
    ]
    output.table(
        "ablax doctor", ("what", "found"), rows, [f"problem: {line}" for line in found["problems"]]
    )
    if found["accelerator_refused"]:
        return REFUSED
    return FAILED if found["problems"] else DONE


def _gib(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"
