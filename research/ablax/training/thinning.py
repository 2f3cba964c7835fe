"""Thins the checkpoints of a finished run to the parameters that are evaluated (see `thinned.py`).

A thinned checkpoint is written whole beside the others and only then takes its step's name, so a kill at any moment
leaves a good checkpoint of every step. The run says "finished" before the first is thinned: none of a run that may have
to go on ever is.
"""

import shutil
from collections.abc import Callable
from typing import Any

from ablax.distributed import ranks
from ablax.run import RunFolder
from ablax.training import disk, session
from ablax.training.checkpoints import Checkpoints
from ablax.training.disk import SaveError
from ablax.training.manifest import Damaged
from ablax.training.state import without_hyper
from ablax.training.thinned import BESIDE, evaluated_only, has_only_parameters, unthinned

MANY = 10**6


def is_due(experiment: Any, folder: RunFolder) -> bool:
    """Whether a run has finished and its checkpoints hold more than `checkpoint.at_end` says."""
    kept, status = experiment.checkpoint.at_end, folder.status()
    if kept == "auto":
        kept = "parameters" if "sweep" in status else "state"
    if kept == "state" or hasattr(experiment.model, "fit"):
        return False
    return status.get("status") == "finished" and unthinned(folder)


def thin(experiment: Any, engine: Any, folder: RunFolder, say: Callable[[str], None]) -> None:
    """Leaves of every checkpoint the parameters that are evaluated; all ranks call it if it `is_due`.

    A checkpoint that is damaged is left as it is, and on a disk that fails the rest is: the next call goes on.
    """
    hyper = session.hyper_of(experiment)
    template = without_hyper(engine.template(session.root_key(0), hyper))
    beside, writer = folder.checkpoints / BESIDE, folder.writer
    if writer:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
    ranks().agree("thinning", {})
    with (
        Checkpoints(folder.checkpoints, MANY, writer=writer, say=say) as whole,
        Checkpoints(beside, MANY, writer=writer, say=say) as small,
    ):
        steps = [s for s in whole.all_steps() if not has_only_parameters(whole.folder / str(s))]
        ranks().agree("checkpoints to thin", {"steps": steps})
        for step in steps:
            try:
                state, cursor = whole.saved(step).state(template)
                config, scores = whole.config(step), whole.saved(step).scores()
                kept = evaluated_only(engine.program.evaluation_params(state))
                small.save(step, kept, cursor, config, scores)
                small.wait()
            except (Damaged, SaveError) as error:
                say(f"checkpoint {step} in {whole.folder} is left as it is: {error}")
                continue
            if writer:
                disk.set_aside(whole.folder / str(step))
                (beside / str(step)).rename(whole.folder / str(step))
                disk.settle_replaced(whole.folder)
            ranks().agree("thinned checkpoint", {"checkpoint": step})
    if writer:
        shutil.rmtree(beside, ignore_errors=True)
