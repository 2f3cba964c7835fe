"""How tests compile: fast, because a program runs once or twice here. Children get it through the environment."""

import importlib.metadata
import os

# Fusions written as LLVM loops compile twice as fast as the emitters that jaxlib 0.10 prefers; other versions may not
# know the switch, and XLA ends a process that names an unknown one.
_SWITCHES = {"0.10": "--xla_cpu_use_fusion_emitters=false"}
_VERSION = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])

FLAGS = f"--xla_backend_optimization_level=0 {_SWITCHES.get(_VERSION, '')}".strip()


def flags(devices: int) -> str:
    """XLA_FLAGS of a child process with this many faked devices."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
