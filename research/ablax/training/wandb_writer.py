"""Weights & Biases, imported only when chosen. Keys stay in wandb's own environment; none is
written here.
"""

import json
import os
import secrets

from ablax.config import RequestError
from ablax.run import RunFolder, write_json
from ablax.training.records import Record, scalars

RESERVED = 10_000


class WandbWriter:
    """Logs to one Weights & Biases run per run folder, resumed or not.

    wandb silently drops rows whose internal step is below one it has seen. So the step of training
    is a metric of its own and the axis of all others, and the internal step only counts rows:
    numbers are reserved in the folder in blocks, and a resumed run begins with a fresh block.

    Args:
      folder: the run folder; wandb.json in it keeps the run's id.
      project: project of the run.
      entity: user or team; None for the default.
      name: display name.
      mode: online or offline, unless WANDB_MODE says otherwise.

    Raises:
      RequestError: if wandb is not installed.
    """

    def __init__(self, folder: RunFolder, project: str, entity: str | None, name: str, mode: str):
        try:
            import wandb
        except ImportError as error:
            raise RequestError(
                f"writers.wandb is on but wandb is not there ({error}); pip install 'ablax[wandb]'"
            ) from None
        self._file = folder.path / "wandb.json"
        kept = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._id = kept.get("id") or secrets.token_hex(4)
        # wandb would let `mode` win over its own variable, which --offline sets.
        mode = os.environ.get("WANDB_MODE") or mode
        online = mode == "online"
        self._run = wandb.init(
            project=project,
            entity=entity,
            name=name,
            id=self._id,
            mode=mode,  # type: ignore[arg-type]
            # Offline there is no server to ask; `wandb sync --append` joins the pieces by their id.
            resume="allow" if online else None,
            dir=str(folder.path),
            config=folder.config() if folder.exists() else {},
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._row = max(kept.get("reserved", 0), self._run.step if online else 0)
        self._reserved = self._row
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Record) -> None:
        """Logs the record's numbers as `split/name` against `step`."""
        if self._row >= self._reserved:
            self._reserved = self._row + RESERVED
            write_json(self._file, {"id": self._id, "reserved": self._reserved})
        self._run.log({**scalars(record), "step": record["step"]}, step=self._row)
        self._row += 1

    def close(self) -> None:
        """Uploads what is left (online) and ends the process that wandb started."""
        self._run.finish()
