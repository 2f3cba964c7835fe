"""Whether a run may go on to another number of steps than it was started with."""

from typing import Any

from ablax.config import RequestError
from ablax.run import RunFolder
from ablax.training import session
from ablax.training.schedules import unchanged_until
from ablax.training.thinned import check_whole_state


def check_growth(experiment: Any, clock: session.Clock, folder: RunFolder) -> None:
    """Lets a run go on only where its learning rates so far stay what they were.

    Raises:
      RequestError: if the schedule would have been another one, the run is past its new end, or its state is gone.
    """
    check_whole_state(folder)
    status = folder.status()
    old, step = status.get("total_steps"), status.get("step", 0)
    forked = status.get("status") == "forked"
    if step > clock.total or (forked and step == clock.total):
        raise RequestError(
            f"{folder.path} is at step {step}, and training.steps={clock.total} leaves nothing to do; raise it"
        )
    if old is None or old == clock.total:
        return
    before = session.Clock(old, clock.tokens_per_step, clock.steps_per_epoch)
    if not same_rates(experiment, step, before, clock):
        raise RequestError(
            f"training.steps from {old} to {clock.total} changes the learning rates of the {step} steps already "
            "done; use schedule.kind=constant or wsd for runs that may grow, start over with --fresh, or branch "
            f"off with `ablax fork {folder.path} --workdir=NEW`"
        )


def same_rates(experiment: Any, step: int, one: session.Clock, other: session.Clock) -> bool:
    """Whether runs of two lengths have the same learning rates before a step."""
    hyper = session.hyper_of(experiment).get("schedule", {})
    factors = [experiment.schedule.build(c.total, c, hyper) for c in (one, other)]
    return unchanged_until(step, *factors)
