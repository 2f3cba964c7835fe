"""Whether this process waits for the other ranks or holds them up, as far as its Python frames tell.

When one rank is stuck within an evaluation, a save or a compiled step, all are in the same phase of the same step, so
that phases do not tell who holds up whom. Frames often do: who waits is inside of JAX or in a barrier, and who is stuck
is in a callback, in a user's code, in a library or at a file.
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

OWN_WORK = ("jax._src.callback", "jax._src.compiler")
"""Modules of JAX through which a process does work of its own: a program's calls of the host, and compiling."""
DEVICES = ("jax.", "ablax.training.parallel", "ablax.evaluation.scoring")
"""Modules that give work to devices or take it from them; JAX's compiled calls leave no frame of their own."""
OTHERS = ("ablax.ranks", "ablax.training.joint_stop")
"""Modules in which the main thread waits for words of other ranks."""


def waits() -> bool:
    """Whether this process waits for devices or other ranks."""
    frames = sys._current_frames()
    main = list(modules(frames.pop(threading.main_thread().ident or 0, None)))
    return waits_in(main, [name for frame in frames.values() for name in modules(frame)])


def waits_in(main: Sequence[str], behind: Sequence[str]) -> bool:
    """Whether the main thread waits for devices or other ranks, or any thread in a barrier of Orbax.

    Never while a thread compiles or runs a host callback: what waits then waits for that.

    Args:
      main: modules of the main thread's frames, the innermost first.
      behind: those of all other threads.
    """
    everywhere = [*main, *behind]
    if any(name.startswith(OWN_WORK) for name in everywhere):
        return False
    if any(name.startswith("orbax.") and ".multihost" in name for name in everywhere):
        return True
    return any(name in OTHERS for name in main) or any(x.startswith(DEVICES) for x in main[:1])


def modules(frame: FrameType | None) -> Iterator[str]:
    """The modules of a thread's frames, the innermost first."""
    while frame is not None:
        yield frame.f_globals.get("__name__", "")
        frame = frame.f_back
