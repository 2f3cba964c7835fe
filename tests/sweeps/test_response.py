"""Response curves of grids: which arms make one, its intervals, an optimum on the edge, pictures light and dark."""

import io
import math

import matplotlib.image
import pytest
from scipy import stats

from ablax.sweeps.plan import grid, leave_one_out
from ablax.sweeps.response import draw, responses
from ablax.sweeps.sections import responses as lines

RATES = [1e-4, 1e-3, 1e-2]


def made(axes, level):
    """The arms of a grid and their values at three seeds around a level."""
    overrides = {str(i): own for i, own in enumerate(grid(axes))}
    values = {
        arm: {seed: level(own) + 0.1 * (seed - 1) for seed in range(3)}
        for arm, own in overrides.items()
    }
    return overrides, values


def test_a_grid_of_one_number_is_a_curve():
    """Catches: a normal quantile, seeds that are points of their own, an optimum within taken for the edge."""
    overrides, values = made({"rate": RATES}, lambda own: abs(math.log10(own["rate"]) + 3))
    (one,) = responses(overrides, values, "bits_per_byte")
    assert (one.knobs, one.best, one.edges) == (("rate",), (1e-3,), ())
    places, means, halves = zip(*one.points, strict=True)
    assert places == ((1e-4,), (1e-3,), (1e-2,))
    assert means == pytest.approx((1, 0, 1))
    assert halves[0] == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    (best,) = responses(overrides, values, "accuracy")
    assert best.edges == ("rate",)  # the largest is the best
    assert "on the edge of the grid in rate" in lines({"responses": [vars(best)]})[0]
    values["1"][0] = math.nan
    assert responses(overrides, values, "bits_per_byte") == []  # two values make no curve
    single = {arm: {0: own[0]} for arm, own in made({"rate": RATES}, lambda own: 1.0)[1].items()}
    assert responses(overrides, single, "loss")[0].points[0][2] is None


def test_other_knobs_make_other_curves_and_two_numbers_a_map():
    overrides, values = made({"rate": RATES, "mup": [True, False]}, lambda own: own["rate"])
    found = responses(overrides, values, "loss")
    assert [one.others for one in found] == ["mup=True", "mup=False"]
    assert all(one.edges == ("rate",) for one in found)
    overrides, values = made(
        {"rate": RATES, "model.width": [8, 16, 32]}, lambda own: own["rate"] - own["model.width"]
    )
    (one,) = responses(overrides, values, "loss")
    assert (one.knobs, one.best) == (("rate", "model.width"), (1e-4, 32))
    assert draw([one], "loss", io.BytesIO())
    assert "at rate 0.0001, 0.001, 0.01 the best model.width is 32, 32, 32" in lines(
        {"responses": [vars(one)]}
    )
    toggles = {name: ({name: 1}, {name: 0}) for name in "abc"}
    parts = {own["arm"]: own for own in leave_one_out(toggles)}
    assert responses(parts, {arm: {0: 1.0} for arm in parts}, "loss") == []


def test_an_optimum_that_moves_is_told_for_each_value():
    """Catches: one optimum for a whole map, which hides that the best rate falls as models get wider; None for what
    an arm does not set."""
    sizes = {"width": [64, 128, 256], "rate": RATES}

    def level(own):
        falling = 0 if own.get("mup") else math.log2(own["width"] / 64) / 1.5
        return abs(math.log10(own["rate"]) + 3 + falling) - own["width"] / 1e6

    standard, values = made(sizes, level)
    scaled, more = made({**sizes, "mup": [True]}, level)
    named = {f"mup {arm}": own for arm, own in scaled.items()}
    values |= {f"mup {arm}": own for arm, own in more.items()}
    moving, staying = responses({**standard, **named}, values, "loss")
    assert (moving.others, staying.others) == ("as configured", "mup=True")
    assert moving.ridge == [(64, 1e-3), (128, 1e-4), (256, 1e-4)]
    assert staying.ridge == [(64, 1e-3), (128, 1e-3), (256, 1e-3)]


@pytest.mark.parametrize("dark", [False, True])
def test_a_picture_is_as_dark_as_its_page(dark):
    found = responses(*made({"rate": RATES}, lambda own: own["rate"]), "loss")
    out = io.BytesIO()
    assert draw(found, "loss", out, dark)
    out.seek(0)
    pixels = matplotlib.image.imread(out, format="png")[..., :3]
    assert (pixels[0, 0].mean() < 0.2) == dark
    assert (pixels.max() > 0.85) if dark else (pixels.min() < 0.1)
    assert not draw([], "loss", out)
