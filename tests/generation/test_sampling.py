"""Laws of the settings of a sampler."""

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.generation.sampling import NONE, Controls, Sampling


def test_controls_of_rows_are_those_of_each():
    """Catches: a list that is cut to the shortest, steps of the first row for all."""
    one = Sampling(temperature=0, logit_bias={5: 1.0}).controls([1])
    other = Sampling(top_k=3, frequency_penalty=0.5).controls(range(5))
    both = Controls.stack([one, other])
    assert both.steps == ("logit_bias", "counts", "greedy", "sample", "top_k")
    assert both.temperature.tolist() == [0, 1]
    assert both.ends[0].tolist()[:2] == [1, NONE]
    assert both.ends[1].tolist()[:5] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(both.bias_tokens[:, 0], [5, NONE])
    assert both.take(np.array([1, 1])).frequency_penalty.tolist() == [0.5, 0.5]


def test_few_shapes_of_lists():
    """Catches: a program for each number of biased tokens."""
    sizes = {
        Sampling(logit_bias=dict.fromkeys(range(n), 1.0)).controls().biases.shape
        for n in range(1, 301)
    }
    assert len(sizes) == 4


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"typical_p": 0.0},
        {"frequency_penalty": float("nan")},
        {"presence_penalty": float("inf")},
        {"min_new_tokens": -1},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": {"5": 1.0}},
    ],
)
def test_values_out_of_range_are_refused_by_name(values):
    """Catches: a check that is missing or names another field."""
    (name,) = values
    with pytest.raises(RequestError, match=f"{name}=.* must be"):
        Sampling(**values)


def test_biases_are_refused_where_they_are_too_many_or_of_no_token():
    """Catches: a bias that is dropped in silence."""
    with pytest.raises(RequestError, match="301 tokens; at most 300"):
        Sampling(logit_bias=dict.fromkeys(range(301), 1.0))
    with pytest.raises(RequestError, match="token 17; the vocabulary has ids from 0 to 16"):
        Sampling(logit_bias={17: 1.0}).check_vocabulary(17)
