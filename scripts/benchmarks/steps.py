"""Training steps side by side: our loop, its bare program, a hand-written step, PyTorch; loader and allocator."""

from row import Row, median, milliseconds, ratio
from setting import Setting
from worker import Worker, interleaved

OVERHEAD = 1.03
"""The whole loop may take this much of a bare step's time."""


def plan(quick: bool) -> tuple[int, int]:
    """Rounds, and steps in each."""
    return (2, 3) if quick else (24, 25)


def measure_step(setting: Setting, quick: bool) -> list[Row]:
    """Our step in the whole loop against bare steps and against PyTorch's, all in one run."""
    with (
        Worker("jax", setting) as ours,
        Worker("torch", setting, ABLAX_MALLOC="0") as plain,
        Worker("torch", setting, ABLAX_MALLOC="1") as tuned,
    ):
        sides = {name: (ours, name) for name in ("loop", "program", "bare")}
        sides |= {"default": (plain, "default"), "fused": (plain, "fused")}
        sides |= {"tuned": (tuned, "default")}
        times = interleaved(sides, *plan(quick))
    loop, bare, default = times["loop"], times["bare"], times["default"]
    return [
        milliseconds("step in our loop", loop),
        milliseconds("our program, called bare", times["program"]),
        milliseconds("hand-written JAX step", bare),
        milliseconds("nanoGPT's step in PyTorch", default),
        milliseconds("... with fused AdamW", times["fused"]),
        milliseconds("... with our allocator settings", times["tuned"]),
        ratio("our loop / its program", loop, times["program"], at_most=OVERHEAD),
        ratio("our loop / hand-written JAX", loop, bare, at_most=OVERHEAD),
        ratio("our loop / PyTorch", loop, default, at_most=1.0),
        ratio("our loop / PyTorch, fused AdamW", loop, times["fused"], at_most=1.0),
        ratio("our loop / PyTorch, our allocator settings", loop, times["tuned"]),
        _tokens("our tokens per second", loop, setting),
        _tokens("PyTorch's tokens per second", default, setting),
    ]


def _tokens(name: str, seconds: list[float], setting: Setting) -> Row:
    return median(name, [setting.batch * setting.length / s for s in seconds], "tokens/s")


def measure_loader(setting: Setting, quick: bool) -> list[Row]:
    """What the loader can deliver against what the loop consumes."""
    rounds, count = plan(quick)
    with Worker("jax", setting) as ours:
        sides = {name: (ours, name) for name in ("loop", "loader")}
        times = interleaved(sides, rounds, count)
    supply, consumption = ([setting.batch / s for s in times[n]] for n in ("loader", "loop"))
    return [
        median("rows that the loader delivers", supply, "rows/s"),
        median("rows that training consumes", consumption, "rows/s"),
        ratio("delivered / consumed", supply, consumption, at_least=2.0),
        median(
            "time of a batch, share of a step",
            [100 * b / s for b, s in zip(times["loader"], times["loop"], strict=True)],
            "%",
        ),
    ]


def measure_allocator(setting: Setting, quick: bool) -> list[Row]:
    """Our step with the allocator's settings and without them, and the memory that they cost."""
    rounds, count = plan(quick)
    with (
        Worker("jax", setting, ABLAX_MALLOC="1") as tuned,
        Worker("jax", setting, ABLAX_MALLOC="0") as plain,
    ):
        workers = {"tuned": tuned, "plain": plain}
        facts = [worker.facts["allocator_tuned"] for worker in workers.values()]
        times = interleaved({n: (w, "loop") for n, w in workers.items()}, rounds, count)
        peaks = {n: w.time("loop", 1)["peak_bytes"] / 2**20 for n, w in workers.items()}
    name = "tuned / plain allocator, step time"
    return [
        milliseconds(
            "step, allocator tuned" if facts[0] else "step (nothing to tune here)", times["tuned"]
        ),
        milliseconds("step, allocator as it comes", times["plain"]),
        ratio(name, times["tuned"], times["plain"]),
        Row("peak memory, tuned", peaks["tuned"], "MiB"),
        Row("peak memory, as it comes", peaks["plain"], "MiB"),
    ]
