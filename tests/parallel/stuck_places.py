"""Places where one rank, the one that STUCK_RANK names, goes no further: a host callback of its model, its disk."""

import dataclasses
import itertools
import os
import sys
import threading
import time
from typing import Any

import jax

from ablax import placement
from ablax.models.attention import Core, DotProductAttention

MINE = os.environ.get("STUCK_RANK") == os.environ.get("ABLAX_PROCESS_ID")
CALLS = itertools.count(1)
RECORDED = threading.Event()
"""Set when this process opens its ledger: at its first save, if that comes soon."""


def hang() -> None:
    """Says when it began, and does not return."""
    print(f"stuck since {time.time()}", file=sys.stderr, flush=True)
    time.sleep(3600)


def called(query: Any) -> None:
    """Does not return from the call that STUCK_CALL names."""
    del query
    if MINE and next(CALLS) == int(os.environ.get("STUCK_CALL", 0)):
        hang()


def calling(query: jax.Array) -> jax.Array:
    """The query, of which the host is told on its way."""
    jax.debug.callback(called, query)
    return query


@dataclasses.dataclass(frozen=True)
class StuckAttention(DotProductAttention):
    """`dot_product`, which calls the host in the midst of the compiled program, once for each layer and device."""

    def build(self) -> Core:
        """See `DotProductAttention.build`."""
        attend = super().build()

        def attend_calling(query, *args, **options):
            # JAX makes one call for all devices, on the first, unless each is given its own part.
            query = placement.per_device(calling, ("B T N H",), "B T N H")(query)
            return attend(query, *args, **options)

        return attend_calling


def touched(event: str, arguments: tuple) -> None:
    """A disk that stops answering: once steps are recorded, the use of a path with STUCK_PATH in it takes for ever."""
    if event not in ("open", "os.listdir"):
        return
    path, wanted = str(arguments[0]), os.environ.get("STUCK_PATH")
    if f"{os.sep}ledger{os.sep}" in path:
        RECORDED.set()
    elif wanted and RECORDED.is_set() and wanted in path:
        hang()


if MINE:
    sys.addaudithook(touched)
