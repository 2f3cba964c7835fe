"""Checkpoints: Orbax commits state, metrics cursor, configuration and a manifest of hashes as one
composite, or nothing.

A checkpoint is used only if every array hashes to what the manifest says, because Orbax restores
flipped bits without an error. Nothing here unpickles: arrays are tensorstore chunks, everything
else is JSON. Nothing in it depends on devices: where arrays go is the reader's template's business.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import orbax.checkpoint as ocp
from orbax.checkpoint import multihost

from ablax.config import RequestError
from ablax.training import disk
from ablax.training.disk import SaveError
from ablax.training.manifest import Damaged, leaves_of, manifest_of
from ablax.training.retention import Keep, best_of
from ablax.training.saved import SavedCheckpoint

DAMAGED = "damaged"
STEP_FOLDERS = ocp.path.step.standard_name_format()


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
      unverified: whether a reader takes checkpoints whose manifest is missing; it says so.
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
        unverified: bool = False,
        say: Callable[[str], None] = print,
    ):
        self.folder = Path(folder).absolute()
        if keep < 1:
            raise RequestError(
                f"keep={keep} must be at least 1: a run resumes from its newest checkpoint"
            )
        if not writer and not self.folder.is_dir():
            raise RequestError(f"there is no checkpoint folder {self.folder}")
        self._best_metric, self.writer, self._say = best_metric, writer, say
        self._unverified = unverified
        self._scores: dict[int, float] = {}
        self._saving: tuple[int, int] | None = None
        if writer:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clean()
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=Keep(keep, self.best_step),
            step_name_format=STEP_FOLDERS,
            enable_async_checkpointing=asynchronous,
            create=False,
            save_root_metadata=False,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=self._options)

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
          step: number of updates behind the state; a checkpoint of the same step is replaced, and lost only when the
            new one is durable.
          state: pytree of arrays; random keys as raw uint32 key data.
          cursor: JSON that says how far the metrics were written.
          config: JSON of the resolved configuration.
          scores: metric -> value, for the best.

        Raises:
          SaveError: if this save, or the one before it, did not become durable.
        """
        self.wait()
        self._clean()
        leaves = leaves_of(state)
        contents = {"cursor": dict(cursor), "config": dict(config), "scores": dict(scores or {})}
        # Orbax writes it while the loop goes on, whose meter is in it.
        contents = json.loads(json.dumps(contents))
        self._saving = step, disk.size_of(state)
        disk.check_room(self.folder, step, self._saving[1], self.latest_step())
        contents["manifest"] = manifest_of(step, leaves, contents)
        items = {name: ocp.args.JsonSave(value) for name, value in contents.items()}  # type: ignore[call-arg]
        self._scores[step] = self._score(contents["scores"])
        try:
            if (
                step in self._manager.all_steps()
            ):  # what all processes believe, whatever one sees on disk
                self._replace(step)
            arrays = ocp.args.StandardSave(state)  # type: ignore[call-arg]
            composite = ocp.args.Composite(state=arrays, **items)
            self._manager.save(step, args=composite, force=True)
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
        if self._saving:
            self._saving = None
            self._clean()

    def close(self) -> None:
        """Waits, as `wait` does, and frees what Orbax holds."""
        try:
            self.wait()
        finally:
            self._manager.close()
            self._clean()

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
        return best_of({step: self._score_of(step) for step in self.all_steps()})

    def config(self, step: int) -> dict[str, Any]:
        """The resolved configuration that was saved with a step."""
        return self.saved(step).config()

    def saved(self, step: int) -> SavedCheckpoint:
        """The checkpoint of a step."""
        return SavedCheckpoint(self.folder, step, self._unverified, self._say)

    def restore(
        self, template: Any, step: int | Literal["best"] | None = None, *, thinned: Any = None
    ) -> tuple[Any, dict[str, Any], int]:
        """Reads a state, the newest good one unless a step is asked for.

        A damaged checkpoint is reported and skipped; a writer also moves it into the folder
        `damaged`.

        Args:
          template: pytree of arrays or ShapeDtypeStructs: structure, shapes, dtypes and shardings
            of the result.
          step: which one; "best" is the one of `best_step`.
          thinned: the template of a checkpoint that was thinned, which is read by it; None: such ones are refused.

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
                return *self.saved(candidate).state(template, thinned), candidate
            except Damaged as damage:
                after = candidates[position + 1 : position + 2]
                then = f"; going back to checkpoint {after[0]}" if after else ""
                self._say(f"checkpoint {candidate} in {self.folder} is damaged ({damage}){then}")
                self._quarantine(candidate)
        good = self.newest_good(step for step in self.all_steps() if step not in candidates)
        remedy = "start again with --fresh"
        if good is not None:
            remedy = f"checkpoint {good} is, ask for it (--step={good})"
        raise RequestError(f"no checkpoint of {candidates} in {self.folder} is good; {remedy}")

    def newest_good(self, steps: Iterable[int]) -> int | None:
        """The newest of some steps whose checkpoint is what was saved, all of it."""
        for step in sorted(steps, reverse=True):
            with contextlib.suppress(Damaged):
                self.saved(step).arrays()
                return step
        return None

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

    def _score(self, scores: Mapping[str, float]) -> float:
        value = scores.get(self._best_metric, math.inf) if self._best_metric else math.inf
        return float(value)

    def _score_of(self, step: int) -> float:
        if step not in self._scores:
            try:
                scores = self.saved(step).scores()
            except Damaged as damage:  # it must not hide the others
                self._say(f"checkpoint {step} in {self.folder} is not asked for a score ({damage})")
                scores = {}
            self._scores[step] = self._score(scores)
        return self._scores[step]

    def _failure(self, error: Exception) -> SaveError:
        step, needed = self._saving or (0, 0)
        self._saving = None
        self._scores.pop(step, None)
        # The manager would raise the same error again at later saves, although the disk has room then.
        with contextlib.suppress(Exception):
            self._manager.close()
        self._clean()
        self._manager = ocp.CheckpointManager(self.folder, options=self._options)
        return disk.failed_save(self.folder, step, error, needed, self.latest_step())

    def _replace(self, step: int) -> None:
        """Makes room for another checkpoint of a step; until that one is durable, `_clean` would take this one back."""
        if self.writer:
            disk.set_aside(self.folder / str(step))
        multihost.sync_global_processes(multihost.unique_barrier_key("ablax:replaced_step"))
        self._manager.reload()

    def _clean(self) -> None:
        """Orbax's threads may make a folder even after their save has failed, so this is done more than once."""
        if self.writer:
            disk.remove_unfinished(self.folder)
            disk.settle_replaced(self.folder)

    def _quarantine(self, step: int) -> None:
        if not self.writer:
            return
        aside = self.folder / DAMAGED
        aside.mkdir(exist_ok=True)
        name = next(n for i in range(10**6) if not (aside / (n := f"{step}.{i}")).exists())
        (self.folder / str(step)).rename(aside / name)
        self._scores.pop(step, None)
        self._manager.reload()
