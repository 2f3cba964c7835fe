"""Plans are pure lists of overrides."""

import doctest

import pytest

from ablax.config import RequestError
from ablax.sweeps import plan
from ablax.sweeps.cells import cells_of, slug
from ablax.sweeps.plan import chain, grid, named, product, seeds


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
        ([], "the plan is empty"),
        ([3], "must return dicts"),
        ([{"arm": "a"}, {"arm": "a"}], "cell a/seed0 is 2 times"),
        ([{"arm": "a", "x": 1}, {"arm": "a", "x": 2, "seed": 1}], "two different arms are named"),
        ([{"seed": "one"}], "must be a whole number"),
    ],
)
def test_malformed_plans_are_refused(cells, message):
    with pytest.raises(RequestError, match=message):
        cells_of(cells)


def test_slugs_stay_unique():
    """Catches: "a/b" and "a b" sharing a folder, and names that climb out of the sweep."""
    names = ["a/b", "a b", "x" * 200, "x" * 201, "..", "a"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert all("/" not in s and s.strip(".") and len(s) < 100 for s in slugs)


def test_docstring_examples():
    assert doctest.testmod(plan).failed == 0
