"""Deleting what nobody needs: checkpoints, or whole runs, by rules, and never what another run or a report stands on.

What is deleted first gets another name in the same folder, which nobody takes for a run or for checkpoints, so a kill
leaves a run with them or without, never with half. The next call removes such graves.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import math
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablax.catalog.lineage import parents_of
from ablax.catalog.usage import bytes_of
from ablax.config import RequestError
from ablax.history import higher_is_better
from ablax.run import RunFolder, now

GRAVE = ".grave."
ENDED = ("finished", "failed")
"""Runs that nobody will go on with by the same command."""
UNITS = {"h": 3600.0, "d": 86400.0, "w": 604800.0}


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which runs go: those that all of the given rules name.

    Attributes:
      older_than: seconds since a run ended; None = any.
      keep_best: how many of each data set's best are kept, by `metric`; None = no such rule.
      metric: what is the best.
      failed: only runs that failed.
      whole: whole runs instead of their checkpoints.
    """

    older_than: float | None = None
    keep_best: int | None = None
    metric: str = "bits_per_byte"
    failed: bool = False
    whole: bool = False

    def __post_init__(self):
        if self.older_than is None and self.keep_best is None and not self.failed:
            raise RequestError(
                "prune needs a rule: --older_than=30d, --keep_best=N [--metric=...] or --failed"
            )
        if self.keep_best is not None and self.keep_best < 0:
            raise RequestError(f"--keep_best={self.keep_best} must be 0 or more")


def seconds_of(text: str) -> float:
    """`12h`, `30d`, `2w` in seconds.

    Raises:
      RequestError: if it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if not found:
        raise RequestError(f"--older_than={text} must be hours, days or weeks: 12h, 30d, 2w")
    return float(found[1]) * UNITS[found[2]]


def plan_of(
    rows: Sequence[Mapping[str, Any]], rules: Rules, chosen: set[str] | None = None
) -> list[dict[str, Any]]:
    """What would be deleted, and what the rules name but must stay.

    Args:
      rows: all that is under the root, with `path` (see `Index.rows`): also what may protect others.
      chosen: paths to which the rules are restricted.

    Returns:
      One dict per run that the rules name: `path`, `workdir`, `bytes`, `kept` (why it stays; None = it goes).
    """
    runs = [row for row in rows if row["kind"] == "run"]
    candidates = [row for row in runs if chosen is None or row["path"] in chosen]
    best = _best(runs, rules)
    parents = _needed(rows)
    sweeps = [row["path"] for row in rows if row["kind"] == "sweep"]
    found = []
    for row in candidates:
        if not _named(row, rules, best):
            continue
        target = Path(row["workdir"])
        if not (size := bytes_of(target if rules.whole else target / "checkpoints")):
            continue
        kept = None
        if row["status"] not in ENDED:
            kept = f"it is {row['status']} and may go on"
        elif children := parents.get(row["path"]):
            kept = f"{children[0]} stands on it"
        elif rules.whole and (sweep := next((s for s in sweeps if _inside(row["path"], s)), None)):
            kept = f"the report of {sweep} needs it; without --whole its checkpoints go"
        found.append({"path": row["path"], "workdir": row["workdir"], "bytes": size, "kept": kept})
    return found


def bury(plan: Sequence[Mapping[str, Any]], rules: Rules) -> list[dict[str, Any]]:
    """Deletes what a plan says.

    Returns:
      The plan's dicts with `deleted`, and `kept` where a run turned out to be running or its folder takes no writes.
    """
    done = []
    for one in plan:
        entry = {**one, "deleted": False}
        if one["kept"] is None:
            try:
                _delete(Path(one["workdir"]), rules.whole, one["bytes"])
                entry["deleted"] = True
            except (RequestError, OSError) as error:
                entry["kept"] = str(error)
        done.append(entry)
    return done


def clear_graves(rows: Sequence[Mapping[str, Any]]) -> None:
    """Removes what a kill left of an earlier call, in runs and beside them."""
    places = {Path(row["workdir"]) for row in rows if row["kind"] == "run"}
    for place in places | {path.parent for path in places}:
        for grave in place.glob(f"{GRAVE}*"):
            shutil.rmtree(grave, ignore_errors=True)


def _delete(folder: Path, whole: bool, size: int) -> None:
    with _held(folder):
        status = RunFolder(folder).status()
        if status.get("status") not in ENDED:
            raise RequestError(f"it is {status.get('status')} by now")
        target = folder if whole else folder / "checkpoints"
        parent = target.parent
        grave = parent / f"{GRAVE}{uuid.uuid4().hex}"
        if not whole:
            # Said first: a run without checkpoints must know why.
            RunFolder(folder).update(pruned={"time": now(), "bytes": size})
        target.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Holds a run's lock, as its training process does; see `RunFolder.lock`, which would write into the folder."""
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RequestError("another process writes it") from None
        yield


def _named(row: Mapping[str, Any], rules: Rules, best: set[str]) -> bool:
    if rules.failed and row["status"] != "failed":
        return False
    if rules.older_than is not None:
        then = row.get("ended") or row.get("started")
        if then is None:
            return False
        age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(then)
        if age.total_seconds() < rules.older_than:
            return False
    if rules.keep_best is not None:
        return row["metrics"].get(rules.metric) is not None and row["path"] not in best
    return True


def _best(runs: Sequence[Mapping[str, Any]], rules: Rules) -> set[str]:
    """The runs that `keep_best` keeps: of each data set and split its own, because others are no match for them."""
    groups: dict[str, list[tuple[float, str]]] = {}
    sign = -1.0 if higher_is_better(rules.metric) else 1.0
    for row in runs:
        value = row["metrics"].get(rules.metric)
        # A NaN has no place in an order.
        if isinstance(value, (int, float)) and not math.isnan(value):
            group = str((row.get("data"), row["metrics"].get("split")))
            groups.setdefault(group, []).append((sign * value, row["path"]))
    kept = rules.keep_best or 0
    return {path for group in groups.values() for _, path in sorted(group)[:kept]}


def _needed(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Path of a run -> those that descend from it, or will when their cells are run."""
    found: dict[str, list[str]] = {}
    for child, parent in parents_of(rows).items():
        found.setdefault(parent, []).append(child)
    by_folder = {row["workdir"]: row["path"] for row in rows if row["kind"] == "run"}
    for row in rows:
        wanted = [row["init_run"]] if row.get("init_run") else []
        for cell in row.get("plan", []):
            wanted += [str(Path(row["workdir"]) / name) for name in cell["needs"] or ()]
            if source := (cell["overrides"] or {}).get("init.run"):
                wanted.append(source)
        for source in wanted:
            for text in (source, source.rpartition("@")[0]):
                path = by_folder.get(str(Path(text).expanduser().resolve())) if text else None
                if path and path != row["path"]:
                    found.setdefault(path, []).append(row["path"])
    return found


def _inside(path: str, sweep: str) -> bool:
    return sweep == "." or path.startswith(f"{sweep}/")
