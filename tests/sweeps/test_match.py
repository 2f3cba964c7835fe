"""Arms that are made equal in a budget, by a knob that is solved when the experiment is known."""

import doctest
import json

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.experiment import base
from ablax.sweeps import match as module
from ablax.sweeps.budgets import Budgets
from ablax.sweeps.plan import chain, match, named, product, seeds
from ablax.sweeps.solved import solved
from ablax.sweeps.solver import Search

WIDTH = "model.feedforward_width"
ARMS = chain(
    named("gelu"),
    named("swiglu", {"model.activation": "swiglu"}),
    named("deep", {"model.num_layers": 2}),
)


@pytest.fixture(scope="module")
def config():
    made = base(model="decoder:tiny", tokenizer="bpe")
    made.data.tokenizer.vocab_size = 300
    made.model.num_layers, made.model.width, made.model.num_heads = 1, 16, 2
    made.model.feedforward_width = 40
    made.data.sequence_length, made.training.batch_size, made.training.steps = 16, 4, 100
    made.schedule.warmup = 2
    return made


@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_value_is_found(seed):
    """Against every value there is. Catches: stopping one short, the upper neighbour never taken, a refused value."""
    rng = np.random.default_rng(seed)
    costs = np.cumsum(rng.integers(1, 9, 200)) ** rng.integers(1, 4)
    allowed = {int(v) for v in range(1, 200) if rng.random() < 0.7}
    multiple = int(rng.integers(1, 6))
    low, high = int(rng.integers(1, 40)), int(rng.integers(120, 199))
    asked = []

    def cost(value):
        asked.append(value)
        if value not in allowed:
            raise RequestError(f"{value} does not divide")
        return float(costs[value])

    target = float(rng.uniform(costs[low] * 0.5, costs[high] * 1.5))
    domain = [v for v in range(low, high + 1) if v in allowed and v % multiple == 0]
    best = min(domain, key=lambda v: (abs(costs[v] - target), v))
    assert Search(cost, multiple, low, high).solve(target) == (best, costs[best])
    assert len(asked) == len(set(asked))


def test_a_large_value_takes_few_questions():
    asked = []

    def cost(value):
        asked.append(value)
        return 7.0 * value**2 + 5

    assert Search(cost, 1, 1, None).solve(7.0 * 123_457**2 + 6) == (123_457, 7.0 * 123_457**2 + 5)
    assert len(asked) < 40


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda value: 100.0 - value % 50, "does not rise with the knob"),
        (lambda value: 3.0, "does not depend on the knob"),
    ],
)
def test_what_cannot_be_solved_is_refused(cost, message):
    with pytest.raises(RequestError, match=message):
        Search(cost, 1, 1, 1000).solve(120.0)


def test_all_but_the_baseline_get_the_width_of_equal_parameters(config):
    """By hand: an embedding aside, a block has 2 D F + F + D (gelu) or 3 D F + 2 F + D parameters."""
    plan = product(match(ARMS, "params", WIDTH), seeds(2))
    assert json.loads(json.dumps(plan)) == plan
    cells, notes = solved(config, plan)
    assert [cell["arm"] for cell in cells] == [cell["arm"] for cell in plan]
    assert [cell.get(WIDTH) for cell in cells[:2]] == [None, None]
    assert notes[0] == []
    # 40 (2 D + 1) = F (3 D + 2): 26.4; swiglu has one matrix more.
    assert cells[2] == {
        "arm": "swiglu", "seed": 0, "model.activation": "swiglu", WIDTH: 26,
    }  # fmt: skip
    assert cells[3] == {**cells[2], "seed": 1}
    budgets = Budgets(config)
    for cell, note in zip(cells[2:], notes[2:], strict=True):
        knobs = {path: value for path, value in cell.items() if path not in ("arm", "seed")}
        want, got = budgets.cost("params", {}), budgets.cost("params", knobs)
        assert note[0]["residual_percent"] == pytest.approx(100 * (got - want) / want)
        wider = budgets.cost("params", {**knobs, WIDTH: knobs[WIDTH] + 1})
        assert abs(got - want) <= abs(wider - want)


def test_what_a_product_adds_counts_for_both(config):
    """Catches: the baseline's budget taken from the experiment as it is, not at the size of the arm."""
    sizes = chain(named("thin"), named("wide", {"model.width": 32}))
    cells, notes = solved(config, product(match(ARMS[:2], "params", WIDTH), sizes))
    budgets = Budgets(config)
    assert [note[0]["want"] for note in notes[2:]] == [
        budgets.cost("params", {}),
        budgets.cost("params", {"model.width": 32}),
    ]
    # 26.4 and 26.5, see above.
    assert [cell.get(WIDTH) for cell in cells] == [None, None, 26, 27]


def test_flops_and_tokens_are_matched_by_steps(config):
    arms = chain(
        named("one"),
        named("two", {"model.num_layers": 2}),
        named("rows", {"training.batch_size": 8}),
    )
    cells, notes = solved(config, match(arms, "flops", "training.steps"))
    budgets = Budgets(config)
    per_step = budgets.cost("flops", {"model.num_layers": 2, "training.steps": 10}) / 10
    assert cells[1]["training.steps"] == round(budgets.cost("flops", {}) / per_step)
    assert abs(notes[1][0]["residual_percent"]) < 100 / cells[1]["training.steps"]
    assert cells[2]["training.steps"] == 50
    cells, notes = solved(config, match(arms, "tokens", "training.steps", tolerance=0.5))
    assert [cell.get("training.steps") for cell in cells] == [None, 100, 50]
    assert notes[2][0]["residual_percent"] == 0


def test_two_budgets_take_two_knobs(config):
    """Catches: the second solved as if the first were not."""
    arms = match(match(ARMS[:2], "params", WIDTH), "flops", "training.steps")
    cells, notes = solved(config, arms)
    assert [note["budget"] for note in notes[1]] == ["params", "flops"]
    got = Budgets(config).cost(
        "flops", {path: value for path, value in cells[1].items() if path != "arm"}
    )
    assert notes[1][1]["got"] == got


def test_refused_values_are_passed_over(config):
    """A width must be a multiple of the heads: 2 here, 3 there."""
    arms = chain(named("base"), named("three", {"model.num_heads": 3}))
    cells, _ = solved(config, match(arms, "params", "model.width", tolerance=0.1))
    assert cells[1]["model.width"] == 15
    cells, _ = solved(config, match(arms, "params", "model.width", multiple_of=9, tolerance=0.5))
    assert cells[1]["model.width"] == 18


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (
            {"model.num_layers": 8},
            {},
            r"arm 'b': no model.feedforward_width from 1 .* closest is 1",
        ),
        ({"model.activation": "swiglu"}, {"high": 8}, r"from 1 to 8 .* closest is 8 with .*\(-"),
        ({"model": "lstm:small"}, {}, r"arm 'b': params cannot be matched .*unknown knob"),
        ({"model": "ngram:5gram"}, {}, r"arm 'b': params cannot be matched"),
        ({"model.dropout_rate": 1}, {}, r"arm 'b': .*unknown knob"),
    ],
)
def test_a_budget_that_cannot_be_reached_is_refused(config, overrides, options, message):
    plan = match(chain(named("a"), named("b", overrides)), "params", WIDTH, **options)
    with pytest.raises(RequestError, match=message) as error:
        solved(config, plan)
    assert "\n" not in str(error.value)


def test_malformed_wishes_are_refused(config):
    with pytest.raises(RequestError, match="budget='size' must be one of params"):
        match(ARMS, "size", WIDTH)
    with pytest.raises(RequestError, match=r"arm 'deep' sets model\.num_layers"):
        match(ARMS, "params", "model.num_layers")
    with pytest.raises(RequestError, match="no arm is named 'relu'"):
        match(ARMS, "params", WIDTH, baseline="relu")
    with pytest.raises(RequestError, match="low=9, high=3"):
        match(ARMS, "params", WIDTH, low=9, high=3)
    twice = match(match(ARMS, "params", WIDTH), "tokens", WIDTH)
    with pytest.raises(RequestError, match="is set twice"):
        solved(config, twice)


def test_a_knob_for_each_arm_and_another_baseline():
    made = match(ARMS, "params", {"gelu": WIDTH}, baseline="deep")
    assert ["match" in cell for cell in made] == [True, False, False]
    assert made[0]["match"][0]["to"] == {"model.num_layers": 2}


def test_docstring_examples():
    assert doctest.testmod(module).failed == 0
