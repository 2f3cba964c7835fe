"""Which rows of a global batch a process reads."""

import math

import jax
from jax.sharding import NamedSharding

from ablax.config import RequestError
from ablax.training.layout import mesh_over
from ablax.training.parallel import ParallelConfig
from ablax.training.sharding import ROWS, row_shards


def rows_of_process(config: ParallelConfig) -> tuple[int, int]:
    """Which of how many equal parts of a batch's rows this process reads.

    Processes that share rows, because `tensor` or `sequence` spans them, read the same part.

    Raises:
      RequestError: if this process has no device of the mesh, or its rows are not one part.
    """
    devices = jax.devices()
    if config.engine == "pmap":
        return jax.process_index(), jax.process_count()
    sizes = config.over(len(devices))
    if (used := math.prod(sizes.values())) != len(devices):
        raise RequestError(
            f"parallel uses {used} of {len(devices)} devices; several processes use all: set parallel.data=-1"
        )
    shards, rows = row_shards(sizes), NamedSharding(mesh_over(devices, sizes), ROWS)
    places = rows.addressable_devices_indices_map((shards,)).values()
    own = sorted({place[0].start or 0 for place in places if place})
    first, count = own[0], len(own)
    if own != list(range(first, first + count)) or first % count or shards % count:
        raise RequestError(
            f"process {jax.process_index()} would hold the shards {own} of {shards} of the rows, which are not one of "
            "equal parts; choose parallel.data and parallel.fsdp as multiples of the processes"
        )
    return first // count, shards // count
