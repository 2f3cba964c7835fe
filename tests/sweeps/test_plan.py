"""Plans are pure lists of overrides."""

import doctest
import itertools

import numpy as np
import pytest
from scipy import stats

from ablax.config import RequestError
from ablax.sweeps import plan
from ablax.sweeps.cells import cells_of, slug
from ablax.sweeps.fractions import fraction_of
from ablax.sweeps.plan import (
    Plan,
    add_one_in,
    chain,
    factorial,
    grid,
    leave_one_out,
    named,
    plan_of,
    product,
    random,
    seeds,
    zip_,
)

PARTS = {
    "norm": ({"model.qk_norm": True}, {"model.qk_norm": False}),
    "groups": ({"model.num_kv_heads": 2}, {"model.num_kv_heads": 4}),
    "window": ({"model.attention_pattern": (64,)}, {"model.attention_pattern": None}),
}


def test_grid_is_every_combination_in_order():
    """Catches: zip instead of product."""
    cells = grid({"model.num_layers": [1, 2], "model.width": [8, 16]})
    found = [(c["model.num_layers"], c["model.width"]) for c in cells]
    assert found == [(1, 8), (1, 16), (2, 8), (2, 16)]


def test_keyword_axes_join_the_mapping():
    assert grid({"model.width": [8]}, name=["a", "b"]) == [
        {"model.width": 8, "name": "a"},
        {"model.width": 8, "name": "b"},
    ]


def test_zip_refuses_axes_of_different_lengths():
    """Catches: the longer axis cut off."""
    with pytest.raises(RequestError, match=r"one length: a has 2, b has 1"):
        zip_(a=[1, 2], b=[3])


def test_leave_one_out_and_add_one_in_are_each_others_complement():
    """Catches: parts put in where they are to be taken out; a path that an arm leaves to the base configuration."""
    left, added = leave_one_out(PARTS), add_one_in(PARTS)
    paths = {"arm", *(path for pair in PARTS.values() for part in pair for path in part)}
    assert all(cell.keys() == paths for cell in [*left, *added])
    everything = {path: value for put_in, _ in PARTS.values() for path, value in put_in.items()}
    nothing = {path: value for _, out in PARTS.values() for path, value in out.items()}
    assert left[0] == {"arm": "full", **everything}
    assert added[0] == {"arm": "none", **nothing}
    for part, without, alone in zip(PARTS, left[1:], added[1:], strict=True):
        assert without == {"arm": f"without {part}", **everything, **PARTS[part][1]}
        assert alone == {"arm": f"with {part}", **nothing, **PARTS[part][0]}
    with pytest.raises(RequestError, match=r"two parts set model\.qk_norm, one of them 'other'"):
        leave_one_out({**PARTS, "other": ({"model.qk_norm": False}, {"model.qk_norm": True})})


def test_factorial_is_every_combination_once():
    cells = factorial(PARTS)
    assert cells[0]["arm"] == "none"
    assert len({tuple(sorted(map(str, cell.items()))) for cell in cells}) == len(cells) == 8
    half = factorial(PARTS, fraction=0.5)
    assert [cell["arm"] for cell in half] == ["none", "norm+groups", "norm+window", "groups+window"]
    assert all(cell in cells for cell in half)


@pytest.mark.parametrize(
    ("factors", "fraction", "resolution"),  # Box, Hunter and Hunter 2005, table 6.22
    [
        *((3, 1 / 2, 3), (4, 1 / 2, 4), (5, 1 / 2, 5), (5, 1 / 4, 3), (6, 1 / 4, 4)),
        *((6, 1 / 8, 3), (7, 1 / 8, 4), (7, 1 / 16, 3), (8, 1 / 4, 5), (8, 1 / 16, 4)),
    ],
)
def test_fractions_have_the_highest_resolution(factors, fraction, resolution):
    """Resolution: the fewest columns of which the product of signs is the same in every run. Catches: words whose
    products are short, a run that is there twice."""
    runs = fraction_of(factors, fraction)
    assert len(np.unique(runs, axis=0)) == len(runs) == 2**factors * fraction
    assert not runs[0].any()
    signs = np.where(runs, 1, -1)
    found = next(
        size
        for size in range(1, factors + 1)
        for columns in itertools.combinations(range(factors), size)
        if abs(signs[:, columns].prod(axis=1).sum()) == len(runs)
    )
    assert found == resolution


@pytest.mark.parametrize("fraction", [1 / 3, 0, 2, 1 / 8])
def test_senseless_fractions_are_refused(fraction):
    with pytest.raises(RequestError, match="fraction="):
        fraction_of(3, fraction)


def test_a_plan_that_fills_the_memory_is_refused():
    with pytest.raises(RequestError, match=r"30 parts has 2\^30 runs"):
        fraction_of(30, 1)


def test_a_fraction_that_confounds_main_effects_is_refused():
    with pytest.raises(RequestError, match="confounds two main effects"):
        fraction_of(4, 1 / 4)


def test_a_knobs_draws_do_not_depend_on_the_others():
    """Catches: one generator for all knobs, so that a knob more changes every arm of a search, and the
    same draws for all."""
    rates = {"optimizer.learning_rate": stats.loguniform(1e-4, 1e-2)}
    both = random(50, {"model.num_layers": stats.randint(1, 5), **rates}, seed=3)
    alone = random(60, rates, seed=3)
    found = [cell["optimizer.learning_rate"] for cell in both]
    assert found == [cell["optimizer.learning_rate"] for cell in alone][:50]
    assert {type(v) for cell in both for v in cell.values()} == {int, float}
    assert {cell["model.num_layers"] for cell in both} == {1, 2, 3, 4}
    assert random(50, rates, seed=4) != alone[:50]
    # Log-uniform: half of the draws under the geometric mean; 3 standard errors of 60 draws.
    assert abs(np.mean([cell["optimizer.learning_rate"] < 1e-3 for cell in alone]) - 0.5) < 0.2
    pairs = random(50, {"a": stats.uniform(), "b": stats.uniform()})
    assert abs(np.corrcoef([list(pair.values()) for pair in pairs], rowvar=False)[0, 1]) < 0.4
    with pytest.raises(RequestError, match="is no distribution"):
        random(1, {"model.width": 64})


def test_product_joins_names_and_refuses_a_knob_set_twice():
    """Catches: the second plan's value silently winning."""
    arms = product(named("wide", {"model.width": 8}), named("deep", {"model.num_layers": 4}))
    assert arms == [{"arm": "wide,deep", "model.width": 8, "model.num_layers": 4}]
    with pytest.raises(RequestError, match=r"two plans of one product set model\.width"):
        product(grid({"model.width": [1]}), grid({"model.width": [2]}))


def test_plans_are_not_shared():
    """Catches: chain handing out the caller's dicts."""
    arms = named("a")
    chain(arms)[0]["x"] = 1
    assert arms == [{"arm": "a"}]


def test_cells_get_names_and_folders_from_what_differs():
    arms = chain(named("base"), grid({"model.width": [8], "model.attention.scale": [1.0]}))
    cells = cells_of(product(arms, seeds(2)))
    assert [cell.folder for cell in cells] == [
        "base/seed0",
        "base/seed1",
        "width=8,scale=1.0/seed0",
        "width=8,scale=1.0/seed1",
    ]
    assert cells[1].overrides == {"seed": 1}
    assert cells[3].overrides == {"model.width": 8, "model.attention.scale": 1.0, "seed": 1}


def test_paths_with_the_same_ending_are_told_apart():
    """Catches: two arms named width=8 that are different."""
    cells = cells_of([{"model.width": 8}, {"objective.width": 8}])
    assert [cell.arm for cell in cells] == ["model.width=8", "objective.width=8"]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([3], "must return dicts"),
        ([{"arm": "a"}, {"arm": "a"}], "cell a/seed0 is 2 times"),
        ([{"arm": "a", "x": 1}, {"arm": "a", "x": 2, "seed": 1}], "two different arms are named"),
        ([{"seed": "one"}], "must be a whole number"),
    ],
)
def test_malformed_cells_are_refused(cells, message):
    with pytest.raises(RequestError, match=message):
        cells_of(cells)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "the plan is empty"),
        (Plan([]), "the plan is empty"),
        ({"seed": 1}, "must return a Plan or a list"),
        (None, "must return a Plan or a list"),
    ],
)
def test_malformed_plans_are_refused(made, message):
    """Catches: a dict that is taken for a list of its keys."""
    with pytest.raises(RequestError, match=message):
        plan_of(made)


def test_an_empty_plan_is_refused():
    with pytest.raises(RequestError, match="the plan is empty"):
        plan.plan_of([])


def test_slugs_stay_unique():
    """Catches: "a/b" and "a b" sharing a folder, and names that climb out of the sweep."""
    names = ["a/b", "a b", "x" * 200, "x" * 201, "..", "a"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert all("/" not in s and s.strip(".") and len(s) < 100 for s in slugs)


def test_docstring_examples():
    assert doctest.testmod(plan).failed == 0
