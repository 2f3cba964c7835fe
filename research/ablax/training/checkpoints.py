"""Checkpoints: Orbax commits state, metrics cursor, configuration and a manifest of hashes as one
composite, or nothing.

A checkpoint is used only if every array hashes to what the manifest says, because Orbax restores
flipped bits without an error. Nothing here unpickles: arrays are tensorstore chunks, everything
else is JSON.
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ablax.config import RequestError
from ablax.run import RunFailed
from ablax.training.manifest import Damaged, check_fits, describe, leaves_of, seal_of

DAMAGED = "damaged"
STEP_FOLDERS = ocp.path.step.standard_name_format()
# What is wrong with the machine, not with the files.
MACHINE_ERRORS = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class SaveError(RunFailed):
    """A checkpoint did not become durable; earlier ones are untouched and a later save may succeed.

    Attributes:
      needed: bytes of the state in memory.
      free: bytes free on the file system.
    """

    def __init__(self, text: str, needed: int, free: int):
        super().__init__(text)
        self.needed, self.free = needed, free


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
      folder: where they lie, one folder per step.
      keep: how many of the newest are kept, besides the best.
      best_metric: key of `scores` (see `save`) that decides which is best, smaller is better; None
        keeps no best.
      asynchronous: write in the background. The state is copied to host memory before `save`
        returns either way.
      writer: False for readers, which change nothing in the folder, so that a run may go on writing
        it.
      say: takes one line of text, for damage that was found.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        keep: int = 2,
        best_metric: str | None = None,
        asynchronous: bool = True,
        *,
        writer: bool = True,
        say: Callable[[str], None] = print,
    ):
        self.folder = Path(folder).absolute()
        if keep < 1:
            raise RequestError(
                f"keep={keep} must be at least 1: a run resumes from its newest checkpoint"
            )
        if not writer and not self.folder.is_dir():
            raise RequestError(f"there is no checkpoint folder {self.folder}")
        self._best_metric, self._writer, self._say = best_metric, writer, say
        self._scores: dict[int, float] = {}
        self._saving: tuple[int, int] | None = None
        if writer:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Keep(keep, self.best_step),
            step_name_format=STEP_FOLDERS,
            enable_async_checkpointing=asynchronous,
            create=False,
            save_root_metadata=False,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(
        self,
        step: int,
        state: Any,
        cursor: Mapping[str, Any],
        config: Mapping[str, Any],
        scores: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving, after the save before has become durable. Buffers of `state` may be
        donated afterwards.

        Args:
          step: number of updates behind the state; a checkpoint of the same step is replaced.
          state: pytree of arrays; random keys as raw uint32 key data.
          cursor: JSON that says how far the metrics were written.
          config: JSON of the resolved configuration.
          scores: metric -> value, for the best.

        Raises:
          SaveError: if this save, or the one before it, did not become durable.
        """
        self.wait()
        leaves = leaves_of(state)
        manifest = {
            "step": step,
            "leaves": describe(leaves),
            "cursor": seal_of(cursor),
            "config": seal_of(config),
        }
        items = {
            "state": ocp.args.StandardSave(state),  # type: ignore[call-arg]
            "cursor": ocp.args.JsonSave(dict(cursor)),  # type: ignore[call-arg]
            "config": ocp.args.JsonSave(dict(config)),  # type: ignore[call-arg]
            "scores": ocp.args.JsonSave(dict(scores or {})),  # type: ignore[call-arg]
            "manifest": ocp.args.JsonSave({**manifest, "seal": seal_of(manifest)}),  # type: ignore[call-arg]
        }
        self._saving = step, sum(leaf.nbytes for leaf in leaves.values())
        self._scores[step] = self._score(scores or {})
        try:
            if step in self.all_steps():
                self._manager.delete(step)
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Returns when the last save is durable.

        Raises:
          SaveError: if it did not become durable.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error
        self._saving = None

    def close(self) -> None:
        """Waits, as `wait` does, and frees what Orbax holds."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def all_steps(self) -> list[int]:
        """The durable steps, oldest first."""
        return sorted(found.step for found in STEP_FOLDERS.find_all(self.folder))

    def latest_step(self) -> int | None:
        """The newest durable step."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """The durable step with the smallest `best_metric`, the newest of equals; None if none was
        scored.
        """
        scored = {step: self._score_of(step) for step in self.all_steps()}
        finite = [(value, -step) for step, value in scored.items() if math.isfinite(value)]
        return -min(finite)[1] if finite else None

    def config(self, step: int) -> dict[str, Any]:
        """The resolved configuration that was saved with a step."""
        return self._read(step, "config")

    def restore(
        self, template: Any, step: int | Literal["best"] | None = None
    ) -> tuple[Any, dict[str, Any], int]:
        """Reads a state, the newest good one unless a step is asked for.

        A damaged checkpoint is reported and skipped; a writer also moves it into the folder
        `damaged`.

        Args:
          template: pytree of arrays or ShapeDtypeStructs: structure, shapes, dtypes and shardings
            of the result.
          step: which one; "best" is the one of `best_step`.

        Returns:
          State, metrics cursor and step.

        Raises:
          RequestError: if there is no such checkpoint, none is good, or it does not fit the
            template.
        """
        self.wait()
        candidates = self._candidates(step)
        for position, candidate in enumerate(candidates):
            try:
                return *self._verified(template, candidate), candidate
            except (RequestError, *MACHINE_ERRORS):
                raise
            except Exception as error:
                reason = str(error).split("\n")[0][:200] or type(error).__name__
                after = candidates[position + 1 : position + 2]
                then = f"; going back to checkpoint {after[0]}" if after else ""
                self._say(f"checkpoint {candidate} in {self.folder} is damaged ({reason}){then}")
                self._quarantine(candidate)
        good = [s for s in self.all_steps() if s not in candidates]
        remedy = f"ask for one of the others: {good}" if good else "start again with --fresh"
        raise RequestError(f"no checkpoint of {candidates} in {self.folder} is good; {remedy}")

    def _candidates(self, step: int | str | None) -> list[int]:
        steps = self.all_steps()
        if not steps:
            raise RequestError(f"there is no checkpoint in {self.folder}; train first")
        if step is None:
            return steps[::-1]
        if step == "best":
            best = self.best_step()
            if best is None:
                metric = self._best_metric
                raise RequestError(
                    f"no checkpoint in {self.folder} has a score {metric!r}; steps are {steps}"
                )
            return [best]
        if step not in steps:
            raise RequestError(
                f"there is no checkpoint of step {step} in {self.folder}; steps are {steps}"
            )
        return [int(step)]

    def _verified(self, template: Any, step: int) -> tuple[Any, dict[str, Any]]:
        manifest = self._read(step, "manifest")
        seal = manifest.pop("seal", None)
        if seal != seal_of(manifest) or manifest["step"] != step:
            raise Damaged("the manifest is not the one that was saved")
        check_fits(template, manifest["leaves"], f"checkpoint {step} in {self.folder}")
        cursor = self._read(step, "cursor")
        for name, value in {"cursor": cursor, "config": self.config(step)}.items():
            if manifest[name] != seal_of(value):
                raise Damaged(f"the {name} is not the one that was saved")
        abstract = jax.tree.map(_abstract, template)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))  # type: ignore[call-arg]
        state = self._manager.restore(step, args=items)["state"]
        for path, found in describe(leaves_of(state)).items():
            if found != manifest["leaves"][path]:
                raise Damaged(f"{path} is not what was saved")
        return state, cursor

    def _read(self, step: int, item: str) -> dict[str, Any]:
        arguments = ocp.args.Composite(**{item: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=arguments)[item]

    def _score(self, scores: Mapping[str, float]) -> float:
        value = scores.get(self._best_metric, math.inf) if self._best_metric else math.inf
        return float(value)

    def _score_of(self, step: int) -> float:
        if step not in self._scores:
            try:
                self._scores[step] = self._score(self._read(step, "scores"))
            except (OSError, ValueError, KeyError):  # a damaged score must not hide the others
                self._scores[step] = math.inf
        return self._scores[step]

    def _failure(self, error: Exception) -> SaveError:
        step, needed = self._saving or (0, 0)
        self._saving = None
        self._scores.pop(step, None)
        self._remove_unfinished()
        self._manager.reload()
        free, latest = shutil.disk_usage(self.folder).free, self.latest_step()
        full = "No space left" in str(error) or getattr(error, "errno", None) in (28, 122)
        reason = "the disk is full" if full else str(error).split("\n")[0]
        good = "there is no earlier one" if latest is None else f"checkpoint {latest} is still good"
        return SaveError(
            f"checkpoint {step} was not saved in {self.folder}: {reason}"
            f" ({needed:,} bytes needed, {free:,} free); {good}",
            needed,
            free,
        )

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)

    def _quarantine(self, step: int) -> None:
        if not self._writer:
            return
        aside = self.folder / DAMAGED
        aside.mkdir(exist_ok=True)
        name = next(n for i in range(10**6) if not (aside / (n := f"{step}.{i}")).exists())
        (self.folder / str(step)).rename(aside / name)
        self._scores.pop(step, None)
        self._manager.reload()


class _Keep(checkpoint_managers.PreservationPolicy):
    """Keeps the newest `count` checkpoints and the best of those that are durable already."""

    def __init__(self, count: int, best_step: Callable[[], int | None]):
        self._count, self._best_step = count, best_step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        kept = {info.step for info in checkpoints[-self._count :]} | {self._best_step()}
        return [info.step in kept for info in checkpoints]


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
