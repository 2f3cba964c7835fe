"""Every knob of an experiment, with its default and what it does."""

from typing import Any

from ablax.config import KIND, Duration, kind_of, walk
from ablax.experiment import Experiment


def knobs(experiment: Experiment) -> list[dict[str, Any]]:
    """Every knob in the order of its declaration: `knob` (dotted path), `value`, `default`, `mark`, `doc`.

    A default is that of the group it stands in: of the chosen kind, whatever else the tree would hold.
    """
    found = []
    for path, field, value, mark in walk(experiment):
        if path.endswith(f".{KIND}"):
            default = kind_of(field, field.default)
        else:
            default = str(field.default) if isinstance(field.default, Duration) else field.default
        shown = str(value) if isinstance(value, Duration) else value
        traced = field.metadata["traced"]
        mark = f"{mark}, traced" if traced else mark
        found.append(
            {
                "knob": path,
                "value": shown,
                "default": default,
                "mark": mark,
                "doc": field.metadata["doc"],
            }
        )
    return found
