"""Totals, identity and files of scores."""

import json
import math

import numpy as np
import pytest

from ablax.config import RequestError
from ablax.evaluation.scores import (
    PREFIXES,
    MetricIdentity,
    Scores,
    measure_of,
    metric_names,
    read_scores,
    totals,
    write_scores,
)

SCORES = Scores(
    nats=np.array([2.0, 10.0]),
    tokens=np.array([1.0, 5.0]),
    correct=np.array([1.0, 2.0]),
    bytes=np.array([3.0, 9.0]),
    names=("a/b.py:1", "ünïcode"),
)


def identity(measure="likelihood", lossless=True):
    return MetricIdentity(measure, "document", 64, 32, True, True, lossless, (("seed", 1),))


def test_totals_divide_sums_once():
    """Catches: an average of averages, bits per token, nats called bits."""
    found = totals(SCORES, identity())
    assert found == {
        "documents": 2,
        "tokens": 6,
        "bytes": 12,
        "nats_per_token": 2.0,
        "perplexity": pytest.approx(math.e**2),
        "bits_per_byte": pytest.approx(1 / math.log(2)),
        "token_accuracy": 0.5,
    }


def test_a_lossy_tokenizer_has_no_bits_per_byte():
    """Catches: bits per byte of text that the tokens do not stand for."""
    lossy = identity(lossless=False)
    assert "bits_per_byte" not in totals(SCORES, lossy)
    assert lossy.to_dict()["comparable"] is False
    assert "lossy" in lossy.to_dict()["reason"]


def test_masked_measures_never_share_a_name_with_likelihoods():
    """Catches: a pseudo-likelihood that a report ranks beside a likelihood."""
    likelihood = set(totals(SCORES, identity())) - {"documents", "tokens", "bytes"}
    for measure in ("pseudo_likelihood", "masked"):
        found = totals(SCORES, identity(measure))
        assert not likelihood & set(found)
        assert identity(measure).to_dict()["comparable"] is False
    assert totals(SCORES, identity("masked"))["masked_accuracy"] == 0.5
    assert "pseudo_bits_per_byte" in totals(SCORES, identity("pseudo_likelihood"))


@pytest.mark.parametrize("measure", PREFIXES)
def test_the_names_of_metrics_are_known_before_there_is_a_number(measure):
    """Catches: a metric that can be measured but not asked for."""
    found = set(totals(SCORES, identity(measure))) - {"documents", "tokens", "bytes"}
    assert found == set(metric_names(measure))
    assert {measure_of(name) for name in found} == {measure}


def test_scores_come_back_from_their_files(tmp_path):
    """Catches: pickled names, nan or infinity in JSON, a file left half-written beside."""
    scores = Scores(SCORES.nats, SCORES.tokens, np.full(2, np.nan), SCORES.bytes, SCORES.names)
    path = write_scores(tmp_path / "evals", "validation-20", scores, identity())
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "validation-20.json",
        "validation-20.npz",
    ]
    found = json.loads(path.read_text())
    assert found["metrics"]["nats_per_token"] == 2.0
    assert "token_accuracy" not in found["metrics"]
    assert found["identity"]["comparable"] is True
    assert found["identity"]["details"] == {"seed": 1}
    back = read_scores(path.with_suffix(".npz"))
    assert back.names == scores.names
    for field in ("nats", "tokens", "correct", "bytes"):
        np.testing.assert_array_equal(getattr(back, field), getattr(scores, field))


def test_nothing_to_count_and_missing_files_are_refused(tmp_path):
    """Catches: a division by zero tokens, a traceback for a missing file."""
    nothing = Scores(*(np.zeros(1) for _ in range(4)), names=("a",))
    with pytest.raises(RequestError, match="1 documents has a token"):
        totals(nothing, identity())
    with pytest.raises(RequestError, match="does not exist"):
        read_scores(tmp_path / "none.npz")
