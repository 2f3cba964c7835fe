"""The C library's allocator, set for a process in which the CPU computes."""

import ctypes
import os
import sys
from collections.abc import Callable

from ablax.machine import Machine, look

# M_ARENA_MAX (XLA's threads would allocate outside the main arena), M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
_MALLOC = {-8: 1, -3: 1 << 30, -1: 2**31 - 1, -2: 256 << 20}


def tune_malloc(look: Callable[[], Machine] = look) -> bool:
    """Lets glibc keep freed memory, before the first large allocation, when only the CPU will compute.

    By default glibc returns every large buffer to the kernel as soon as it is freed, and each training step faults
    all of its pages in again. ABLAX_MALLOC=0 switches this off. docs/LOG.md has the speed and the memory it costs.

    Args:
      look: tells which accelerators the machine shows.

    Returns:
      Whether the allocator was tuned.
    """
    if sys.platform != "linux" or os.environ.get("ABLAX_MALLOC") == "0":
        return False
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms != "cpu" and (platforms or look().accelerator):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version()  # absent in other C libraries
        return all(libc.mallopt(option, value) for option, value in _MALLOC.items())
    except (OSError, AttributeError):
        return False
