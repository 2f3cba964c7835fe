"""The noise floor: sources of noise that are told apart, documents that are drawn anew, stars."""

import math

import numpy as np
import pytest

from ablax.evaluation.scores import MetricIdentity, Scores, totals, write_scores
from ablax.sweeps.documents import bootstrap, read_sums, standard_error
from ablax.sweeps.noise import Noise, floor, noise, starred


def test_sources_of_noise_are_told_apart():
    """Catches: repeats that count as seed noise, a deviation over all arms' values together."""
    rng = np.random.default_rng(0)
    values, repeats = {}, {}
    for arm in range(40):
        for seed in range(5):
            level = 10 * arm + 0.3 * rng.standard_normal()
            runs = level + 0.3 * rng.standard_normal(3)
            values.setdefault(str(arm), {})[seed] = runs[0]
            repeats[str(arm), seed] = runs.tolist()
    found = noise(values, repeats, [0.3, 0.4])
    assert found.repeat == pytest.approx(0.3, rel=0.1)
    assert found.repeat_df == 400
    assert found.seed == pytest.approx(0.3, rel=0.15)
    assert found.evaluation == pytest.approx(math.sqrt(0.125))
    assert noise({"a": {0: 1.0}}, {}) == Noise(None, 0, None, None)


def documents(rng, count=4000, level=2.0):
    """The sums of one model: nats and bytes of documents of uneven length."""
    size = rng.integers(50, 500, count).astype(float)
    return np.stack([size * (level + 0.5 * rng.standard_normal(count)), size])


def test_the_error_over_documents_is_that_of_new_documents():
    """Catches: a mean of ratios, an error of unpaired documents, one that grows with the seeds."""
    made = [documents(np.random.default_rng(i), 200) for i in range(600)]
    ratios = [top.sum() / bottom.sum() for top, bottom in made]
    errors = [standard_error([(1, [one])]) for one in made]
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.1)
    one = made[0]
    assert standard_error([(1, [one, one, one])]) == pytest.approx(errors[0])
    worse = one * [[1.01], [1]]
    assert standard_error([(1, [worse]), (-1, [one])]) == pytest.approx(errors[0] / 100)
    assert standard_error([(1, [one]), (-1, [one[:, 1:]])]) is None


def test_the_bootstrap_agrees_with_the_delta_method():
    """Catches: documents drawn for each model by itself."""
    one = documents(np.random.default_rng(0), 500)
    other = one * [[1.02], [1]] + 0.5 * documents(np.random.default_rng(1), 500) * [[0.01], [0]]
    low, high = bootstrap([other], [one])
    error = standard_error([(1, [other]), (-1, [one])])
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert low < other[0].sum() / other[1].sum() - one[0].sum() / one[1].sum() < high


@pytest.mark.parametrize("measure", ["likelihood", "masked", "probe", "probe_token"])
def test_sums_give_the_metric_back(tmp_path, measure):
    """Catches: nats where bits are meant, the file of another measure."""
    nats, size = documents(np.random.default_rng(0), 9)
    scores = Scores(nats, size / 2, size / 4, size, tuple("abcdefghi"))
    identity = MetricIdentity(measure, "document", 8, 8, True, True, True)
    suffix = "" if measure == "likelihood" else f"-{measure}"
    write_scores(tmp_path / "evals", f"validation-7{suffix}", scores, identity)
    found = totals(scores, identity)
    record = {"metrics": {**found, "split": "validation", "step": 7}}
    names = [name for name in found if name not in ("documents", "tokens", "bytes")]
    for metric in names:
        sums = read_sums(tmp_path, record, metric)
        if metric == "perplexity":
            assert sums is None
        else:
            assert sums[0].sum() / sums[1].sum() == pytest.approx(found[metric])
    assert names


def test_no_star_under_the_floor():
    """Catches: a star by p alone."""
    found = Noise(0.1, 5, 0.0, None)
    under = floor(found, 4, None, 0)
    assert under == pytest.approx(2.5706 * 0.1 * math.sqrt(0.5), rel=1e-4)
    assert floor(found, 4, 1.0, 9) == pytest.approx(2.306, rel=1e-3)
    assert floor(Noise(None, 0, 1.0, 1.0), 4, None, 0) is None
    assert starred(-0.2, 0.01, under)
    assert not starred(-0.18, 0.01, under)
    assert not starred(-0.2, 0.06, under)
    assert starred(-0.1, 0.05, None)
    assert not starred(None, None, None)
