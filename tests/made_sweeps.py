"""A finished sweep for tests of the report, without a run."""

import dataclasses
import json
import math

from ablax.run import write_json
from ablax.sweeps.cells import cells_of, record_path
from ablax.sweeps.plan import chain, named, product, seeds

LEVELS = {"decoder": (1.9, 2.0, 1.95), "lstm": (2.1, 2.3, 2.12), "ngram": (2.5, 2.5, 2.5)}


def make_sweep(folder, arms=("ngram", "lstm", "decoder", "encoder"), count=3):
    """A finished sweep as `ablax sweep` leaves it, with made-up curves."""
    cells = cells_of(product(chain(*map(named, arms)), seeds(count)))
    plan = {"experiment": "ladder.py", "metric": "bits_per_byte", "baseline": arms[0]}
    plan |= {"arms": list(arms), "cells": [dataclasses.asdict(cell) for cell in cells]}
    write_json(folder / "sweep.json", plan)
    for cell in cells:
        run = folder / cell.folder
        run.mkdir(parents=True)
        encoder = cell.arm == "encoder"
        final = 1.5 if encoder else LEVELS[cell.arm][cell.seed]
        metric = "masked_nats_per_token" if encoder else "bits_per_byte"
        steps = (0,) if cell.arm == "ngram" else range(0, 501, 50)
        with (run / "metrics.jsonl").open("w") as lines:
            for step in steps:
                value = final + (0 if cell.arm == "ngram" else 4 * math.exp(-step / 80))
                record = {"step": step, "split": "validation", metric: value}
                lines.write(json.dumps(record) + "\n")
        metrics = {metric: final, "accuracy": 0.5}
        if encoder:
            reason = "pseudo-log-likelihood is no likelihood"
            metrics |= {"comparable": False, "reason": reason}
        result = {"metrics": metrics, "seconds": 10.0 + cell.seed, "parameters": 1000}
        result |= {"status": "finished", "step": 500, "tokens_per_second": 5e4}
        write_json(record_path(folder, cell.folder), result)
    return folder
