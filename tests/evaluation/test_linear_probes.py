"""Laws of linear probes: the textbook's regression, from sums."""

import numpy as np
import pytest

from ablax.evaluation.linear_probes import PENALTIES, Moments, answers, centroids, ridge

CLASSES, WIDTH = 3, 6


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 400)
    states = rng.normal(2.0, 1.0, (400, WIDTH)) * np.arange(1, WIDTH + 1)
    states[:, 1] += labels == 2
    states[:, 4] += labels
    return states, labels


def halves(states, labels):
    return [Moments.of(states[part::2], labels[part::2], CLASSES) for part in (0, 1)]


def test_it_is_the_best_ridge_regression_of_a_grid(data):
    """Catches: a penalized offset, a penalty chosen on what it is fitted to, a fit without the held-out part."""
    states, labels = (part[:60] for part in data)
    wanted = np.eye(CLASSES)[labels]

    def textbook(x, y, penalty):
        middle, mean = x.mean(0), y.mean(0)
        x, y = x - middle, y - mean
        size = (x**2).sum() / x.shape[1]
        weights = np.linalg.solve(x.T @ x + penalty * size * np.eye(x.shape[1]), x.T @ y)
        return lambda new: (new - middle) @ weights + mean

    errors = [
        ((textbook(states[::2], wanted[::2], p)(states[1::2]) - wanted[1::2]) ** 2).sum()
        for p in PENALTIES
    ]
    best = int(np.argmin(errors))
    assert 0 < best < len(PENALTIES) - 1
    weights, offsets = ridge(*halves(states, labels))
    expected = textbook(states, wanted, PENALTIES[best])(states)
    np.testing.assert_allclose(states @ weights + offsets, expected, atol=1e-9)


def test_what_is_planted_is_found(data):
    """Catches: scores of classes in another order; offsets left out."""
    _, labels = data
    states = np.random.default_rng(1).normal(5.0, 1.0, (400, WIDTH))
    states[:, 2:5] = np.eye(CLASSES)[labels] * 1e-3
    assert (answers(states, ridge(*halves(states, labels))) == labels).all()


def test_a_label_that_nothing_tells_gets_the_commonest(data):
    states, _ = data
    labels = (np.random.default_rng(2).random(400) < 0.3) * 2
    assert (answers(states, ridge(*halves(states, labels))) == 0).all()


def test_states_that_are_constant_are_no_error(data):
    labels = np.repeat([0, 1, 1, 1], 100)
    found = answers(np.ones((400, WIDTH)), ridge(*halves(np.ones((400, WIDTH)), labels)))
    assert (found == 1).all()


def test_the_nearest_mean(data):
    """Catches: the largest product in place of the least distance; a class without tokens as a mean at zero."""
    states, labels = data
    labels = np.minimum(labels, 1)
    means = [states[labels == c].mean(0) for c in (0, 1)]
    expected = np.argmin([((states - mean) ** 2).sum(1) for mean in means], axis=0)
    found = answers(states, centroids(Moments.of(states, labels, CLASSES)))
    np.testing.assert_array_equal(found, expected)
    assert len(set(found)) == 2
