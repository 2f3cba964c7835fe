"""Laws of splits: they are disjoint, stable and complete."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablax.config import RequestError
from ablax.data.documents import Texts
from ablax.data.sources import TextConfig
from ablax.data.splits import SplitConfig, by_hash, by_tail, open_splits


@dataclasses.dataclass(frozen=True)
class Given:
    """A user's own source."""

    splits: tuple[tuple[str, tuple[str, ...]], ...]

    def build(self, cache, offline):
        return {name: Texts(list(texts)) for name, texts in self.splits}


def own(**splits):
    return Given(tuple(splits.items()))


def opened(source, tmp_path, **knobs):
    return {
        name: list(split)
        for name, split in open_splits(source, SplitConfig(**knobs), tmp_path, True).items()
    }


def numbered(count):
    return [f"document {number}" for number in range(count)]


def test_hash_is_stable_when_documents_are_added(tmp_path):
    """Catches a split by position or by the number of documents."""
    few = opened(own(train=tuple(numbered(500))), tmp_path, validation=0.2, test=0.1)
    many = opened(own(train=tuple(numbered(1000)[::-1])), tmp_path, validation=0.2, test=0.1)
    for name in ("train", "validation", "test"):
        assert set(few[name]) <= set(many[name])
    assert sorted(text for texts in many.values() for text in texts) == sorted(numbered(1000))
    # Three standard deviations of a binomial share of 1000.
    assert abs(len(many["validation"]) - 200) < 38
    assert abs(len(many["test"]) - 100) < 29


def test_hash_depends_on_the_seed_and_not_on_copies(tmp_path):
    """Catches a seed that nothing reads, and copies of a document on both sides."""
    texts = tuple(numbered(300) * 2)
    one = opened(own(train=texts), tmp_path, validation=0.3)
    other = opened(own(train=texts), tmp_path, validation=0.3, seed=1)
    assert one != other
    assert not set(one["train"]) & set(one["validation"])
    assert "test" not in one


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=12), min_size=1, max_size=6),
    validation=st.sampled_from([0.1, 0.25, 0.5]),
    test=st.sampled_from([0.0, 0.2]),
)
def test_tail_cuts_the_joined_text(texts, validation, test):
    """Catches rounding other than int(n x share), lost or doubled characters at the cuts."""
    config = SplitConfig(rule="tail", validation=validation, test=test)
    splits = by_tail(Texts(texts), config)
    joined = "".join(texts)
    first = int(len(joined) * round(1 - validation - test, 12))
    assert "".join(splits["train"]) == joined[:first]
    assert "".join("".join(split) for split in splits.values()) == joined
    assert all(len(list(split)) == len(split) for split in splits.values())


def test_tail_is_nanogpts_split_of_shakespeare(shared_data, tmp_path):
    """Catches a cut in bytes, or rounded up: 1,003,854 and 111,540 characters."""
    source = TextConfig(str(shared_data / "tinyshakespeare" / "input.txt"))
    splits = opened(source, tmp_path, rule="tail", validation=0.1)
    assert [len(texts[0]) for texts in splits.values()] == [1_003_854, 111_540]


def test_given_splits_must_not_share_documents(tmp_path):
    """Catches leaks that pass, blank documents counted as leaks, and a drop that takes the wrong
    side or leaves some."""
    source = own(train=("a", "b", "a", " ", "c"), validation=("a", "d", " "), test=("d", "b", "e"))
    with pytest.raises(
        RequestError, match=r"2 documents of train are also in validation, e\.g\. 0"
    ):
        opened(source, tmp_path, rule="given")
    dropped = opened(source, tmp_path, rule="given", shared="drop")
    assert dropped == {"train": [" ", "c"], "validation": ["a", " "], "test": ["d", "b", "e"]}
    assert opened(source, tmp_path, rule="given", shared="allow")["train"] == [
        "a",
        "b",
        "a",
        " ",
        "c",
    ]


def test_globs_of_given_splits(tmp_path):
    """Catches globs that are ignored when the rule does not read them."""
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(name)
    path = {name: str(tmp_path / f"{name}.txt") for name in ("train", "valid", "test")}
    source = TextConfig(path["train"], path["valid"], path["test"])
    assert opened(source, tmp_path, rule="given") == {
        "train": ["train"],
        "validation": ["valid"],
        "test": ["test"],
    }
    with pytest.raises(RequestError, match=r"validation_glob is read only with split\.rule=given"):
        opened(source, tmp_path, rule="tail")


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"validation": 0.0}, "the validation split is empty: 1 documents"),
        ({"validation": 1.5}, r"validation=1\.5 must be"),
        ({"validation": 0.6, "test": 0.4}, "leave nothing for training"),
        ({"rule": "given"}, "no validation split of its own"),
    ],
)
def test_mistakes(tmp_path, knobs, match):
    """Catches an empty validation split that shows only after training."""
    with pytest.raises(RequestError, match=match):
        opened(own(train=("x",)), tmp_path, **knobs)


def test_skipped_and_names_are_carried(tmp_path):
    """Catches subsets that renumber names or forget what was skipped."""
    source = Texts(numbered(50), [f"n{i}" for i in range(50)])
    source.skipped = [("bad", "reason")]
    for split in (by_hash, by_tail):
        parts = split(source, SplitConfig(validation=0.4))
        assert parts["train"].skipped == source.skipped
        part = parts["validation"]
        number = len(part) - 1
        assert part[number] in source[int(part.name(number)[1:])]
