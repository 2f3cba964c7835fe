"""Writers: what happens to a record besides metrics.jsonl. A writer that fails is reported once and
switched off.

A record is a flat dict: `step` (updates done), `split`, and scalars by name.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ablax.config import RequestError, knob
from ablax.run import RunFolder
from ablax.training.meter import CLOCKED
from ablax.training.records import Record, Records, plain
from ablax.training.tensorboard_writer import TensorBoardWriter

Say = Callable[[str], None]
FIRST = ("loss", "nats_per_token", "bits_per_byte")
SHOWN = 4


@dataclasses.dataclass(frozen=True)
class WritersConfig:
    """Where metrics go. metrics.jsonl is always written."""

    every: int = knob(10, "steps between two records of the training metrics", mark="cosmetic")
    console: bool = knob(
        True, "a progress bar on a terminal, plain lines elsewhere, on stderr", mark="cosmetic"
    )
    tensorboard: bool = knob(True, "TensorBoard event files in the run folder", mark="cosmetic")
    wandb: bool = knob(False, "Weights & Biases; needs the extra ablax[wandb]", mark="cosmetic")
    wandb_project: str = knob("ablax", "project in Weights & Biases", mark="cosmetic")
    wandb_entity: str | None = knob(
        None, "user or team in Weights & Biases; none: the default", mark="cosmetic"
    )
    wandb_name: str | None = knob(
        None, "display name in Weights & Biases; none: the folder's", mark="cosmetic"
    )
    wandb_mode: Literal["online", "offline"] = knob(
        "online", "offline: written into the run folder, for `wandb sync` later", mark="cosmetic"
    )

    def __post_init__(self):
        if self.every < 1:
            raise RequestError(f"every={self.every} must be at least 1 step")


class Writer(Protocol):
    """What receives records."""

    def write(self, record: Record) -> None:
        """Takes one record."""
        ...

    def close(self) -> None:
        """Flushes and frees."""
        ...


class Writers:
    """metrics.jsonl and the chosen writers as one; a context that closes them.

    Args:
      records: metrics.jsonl.
      others: the rest.
      say: takes one line of text.
    """

    def __init__(self, records: Records, others: Iterable["Guarded"], say: Say):
        self._records = records
        self._writers = [Guarded("metrics.jsonl", lambda: records, say), *others]

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()

    def write(self, record: Record) -> None:
        """Gives the record to every writer."""
        for writer in self._writers:
            writer.write(record)

    def cursor(self) -> int:
        """See `Records.cursor`."""
        return self._records.cursor()


def open_writers(
    config: WritersConfig,
    folder: RunFolder,
    total_steps: int,
    cursor: int = 0,
    progress: bool = True,
    say: Say = print,
) -> Writers:
    """The writers of a run that starts, or resumes from a checkpoint.

    Args:
      config: which ones.
      folder: the run folder; its metrics are cut back to the cursor. Of one that this process may not write, none.
      total_steps: updates of the whole run.
      cursor: the checkpoint's, in bytes of metrics.jsonl; 0 at the start.
      progress: False leaves the console out.
      say: takes one line of text.

    Raises:
      RequestError: if a chosen writer is not installed.
    """
    if not folder.writer:
        return Writers(Records(os.devnull), (), say)
    records = Records(folder.metrics_file)
    if missing := records.truncate(cursor):
        say(
            f"{folder.metrics_file} lacks {missing} bytes that the checkpoint counts: they are lost"
        )
    done = max((record["step"] for record in folder.metrics()), default=0)
    makers: dict[str, Callable[[], Writer]] = {}
    if config.console and progress:
        makers["console"] = lambda: ConsoleWriter(total_steps, done, sys.stderr)
    if config.tensorboard:
        makers["tensorboard"] = lambda: TensorBoardWriter(folder.path / "tensorboard", done)
    if config.wandb:
        makers["wandb"] = lambda: _wandb(config, folder)
    return Writers(records, (Guarded(name, make, say) for name, make in makers.items()), say)


def _wandb(config: WritersConfig, folder: RunFolder) -> Writer:
    from ablax.training.wandb_writer import WandbWriter

    return WandbWriter(
        folder,
        config.wandb_project,
        config.wandb_entity,
        config.wandb_name or folder.path.name,
        config.wandb_mode,
    )


class Guarded:
    """A writer whose failure is said once; afterwards it is off. Only a wrong request gets through.

    Args:
      name: for the message.
      make: makes the writer.
      say: takes one line of text.
    """

    def __init__(self, name: str, make: Callable[[], Writer], say: Say):
        self._name, self._say = name, say
        self._writer: Writer | None = None
        self._try(lambda: setattr(self, "_writer", make()))

    def write(self, record: Record) -> None:
        """Writes, unless the writer is off."""
        if self._writer:
            self._try(self._writer.write, record)

    def close(self) -> None:
        """Closes, unless the writer is off."""
        if self._writer:
            self._try(self._writer.close)

    def _try(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except RequestError:
            raise
        except Exception as error:
            self._writer = None
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            self._say(
                f"the {self._name} writer failed and is off for the rest of this run ({reason})"
            )


class ConsoleWriter:
    """A progress bar on a terminal, plain lines elsewhere.

    Args:
      total_steps: updates of the whole run.
      done: updates done when it starts or resumes.
      stream: where to write.
    """

    def __init__(self, total_steps: int, done: int, stream: TextIO):
        self._total, self._stream = total_steps, stream
        self._first: tuple[int, float] | None = None
        self._progress: Progress | None = None
        if stream.isatty():
            # Drawn when a record arrives: no thread competes with the training for a core. Talk on
            # stderr goes above the bar, because rich takes stderr over.
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(file=stream),
                auto_refresh=False,
            )
            self._task = self._progress.add_task("", total=total_steps, completed=done, text="")
            self._progress.start()

    def write(self, record: Record) -> None:
        """Training records move the bar; others are lines."""
        step, text, training = record["step"], describe(record), record["split"] == "train"
        if training:
            text += self._remaining(step)
        if self._progress and training:
            self._progress.update(self._task, completed=step, text=text, refresh=True)
        elif self._progress:
            line = f"step {step} {record['split']}: {text}"
            self._progress.console.print(line, markup=False, highlight=False)
        else:
            line = f"step {step}/{self._total} {record['split']}: {text}"
            print(line, file=self._stream, flush=True)

    def _remaining(self, step: int) -> str:
        """Time to the end at the rate since the first record: compilation is not in it."""
        now = time.monotonic()
        if self._first is None:
            self._first = step, now
        first, begin = self._first
        if step <= first:
            return ""
        return f", ETA {clock((now - begin) / (step - first) * (self._total - step))}"

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._progress:
            self._progress.stop()


def describe(record: Record) -> str:
    """The scalars worth a glance: `loss 3.2104, tokens/s 51,200`."""
    scalars = {k: plain(v) for k, v in record.items() if k not in ("step", "split", *CLOCKED)}
    names = [k for k in FIRST if k in scalars] + [k for k in scalars if k not in FIRST]
    parts = [
        f"{k.replace('_', ' ')} {_shown(scalars[k])}"
        for k in names
        if isinstance(scalars[k], (int, float))
    ]
    parts = parts[:SHOWN]
    if "tokens_per_second" in record:
        parts.append(f"tokens/s {record['tokens_per_second']:,.0f}")
    if "mfu" in record:
        parts.append(f"mfu {record['mfu']:.1%}")
    return ", ".join(parts)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e9 else f"{value:.4g}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
