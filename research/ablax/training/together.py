"""What the ranks of a run agree on before they compute together, and that they stop and end together."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from ablax import config as configuration
from ablax.data.corpus import Corpus
from ablax.ranks import Ranks
from ablax.run import RunFolder, provenance
from ablax.training.heartbeat import beating
from ablax.training.joint_stop import JointStop
from ablax.training.phases import Phases
from ablax.training.signals import Stop, signals


@contextlib.contextmanager
def together(ranks: Ranks, experiment: Any, folder: RunFolder, phases: Phases) -> Iterator[Stop]:
    """Catches signals, alone or with the other ranks: these agree on what they are, and end together.

    Raises:
      RequestError: if ranks differ.
    """
    grace = experiment.checkpoint.grace_seconds
    if not ranks.several:
        with signals(phases, grace) as stop:
            yield stop
        return
    stop = JointStop(ranks)
    watched = beating(
        ranks,
        experiment.heartbeat,
        phases,
        lambda line: folder.update(status="failed", error=line),
        stop.beat,
    )
    with watched, signals(phases, grace, stop):
        ranks.agree("start", start_of(experiment))
        yield stop


def start_of(experiment: Any) -> dict[str, Any]:
    """What must be the same on all ranks before anything is read: configuration, code, libraries, devices."""
    here, devices = provenance(), jax.local_devices()
    return {
        **{f"--config.{k}": v for k, v in configuration.flatten(experiment).items()},
        "code": here["code"]["sha256"][:12],
        **{f"version of {name}": version for name, version in here["versions"].items()},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def facts(folder: RunFolder, corpus: Corpus) -> dict[str, Any]:
    """What must be the same on all ranks before anything is written: data, and where the run stands."""
    steps = [int(p.name) for p in folder.checkpoints.glob("*") if p.name.isdigit()]
    prints = {f"data fingerprint of {name}": value for name, value in corpus.fingerprints().items()}
    return {**prints, "run": folder.exists(), "newest checkpoint": max(steps, default=None)}
