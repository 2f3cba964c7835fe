"""The pictures of a report, by day in the sweep's folder and by night for the page."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ablax.sweeps.curves import learning_curves
from ablax.sweeps.forest import differences
from ablax.sweeps.response import Response, draw
from ablax.sweeps.scaling import Point, draw_scaling

Draw = Callable[[Any, bool], bool]


def drawings(
    sweep: Path, found: Mapping[str, Any]
) -> tuple[dict[str, Path | None], dict[str, bytes]]:
    """Draws what a report found.

    Args:
      found: what `report` returned.

    Returns:
      Heading -> file, None for a picture of nothing; and heading -> PNG for a dark page, of the others.
    """
    other = [row["arm"] for row in found["not_comparable"]]
    curved = [Response(**one) for one in found["responses"]]
    points = [Point(**one) for one in (found["scaling"] or {"points": ()})["points"]]
    pictures: dict[str, tuple[str, Draw]] = {
        "Learning curves": (
            "curves.png",
            lambda out, dark: learning_curves(sweep, out, other, dark, found["metric"]),
        ),
        "Differences from the baseline": (
            "differences.png",
            lambda out, dark: differences(found, out, dark),
        ),
        "Responses": ("responses.png", lambda out, dark: draw(curved, found["unit"], out, dark)),
        "Scale": (
            "scaling.png",
            lambda out, dark: draw_scaling(points, found["unit"], out, dark),
        ),
    }
    drawn: dict[str, Path | None] = {}
    night = {}
    for heading, (name, made) in pictures.items():
        drawn[heading] = sweep / name if made(sweep / name, False) else None
        if drawn[heading]:
            made(dark := io.BytesIO(), True)
            night[heading] = dark.getvalue()
    return drawn, night
