"""Filling masks: what users of transformers know, and long texts as asked."""

import pytest

from ablax.config import RequestError
from ablax.pipelines.pipeline import pipeline

KEYS = ["score", "token", "token_str", "sequence"]


@pytest.fixture(scope="module")
def filler(masked):
    return pipeline("fill-mask", masked)


def test_one_mask(filler, masked):
    """Catches: candidates of another place; a sequence with <bos> in it."""
    found = filler("ab[MASK]d", top_k=3)
    assert [list(one) for one in found] == [KEYS] * 3
    assert [one["score"] for one in found] == sorted((o["score"] for o in found), reverse=True)
    (filling,) = masked.fill("ab[MASK]d", top_k=3)
    assert [(one["token_str"], one["score"]) for one in found] == [
        (text, pytest.approx(score)) for text, score in filling.candidates[0]
    ]
    assert [one["sequence"] for one in found] == [f"ab{one['token_str']}d" for one in found]
    assert found[0]["token"] == filler.tokenizer.encode(found[0]["token_str"])[0]


def test_several_masks_and_several_texts(filler):
    """Catches: masks that are filled one after the other; texts in the order of their lengths."""
    first, second = found = filler("a[MASK]c<mask>", top_k=2)
    assert [len(one) for one in found] == [2, 2]
    assert first[0]["sequence"] == f"a{first[0]['token_str']}c<mask>"
    assert second[0]["sequence"] == f"a<mask>c{second[0]['token_str']}"
    texts = ["abcdefgh[MASK]", "[MASK]"]
    several = filler(texts)
    assert [one["token"] for one in several[0]] == [one["token"] for one in filler(texts[0])]
    assert filler(texts, batch_size=1)[1][0]["score"] == pytest.approx(several[1][0]["score"])


def test_targets(filler):
    """Catches: targets among the five likeliest only; a score that is shared out among targets."""
    scores = {one["token_str"]: one["score"] for one in filler("ab[MASK]d", top_k=14)}
    found = filler("ab[MASK]d", targets=["j", "c"])
    assert {one["token_str"] for one in found} == {"j", "c"}
    for one in found:
        assert one["score"] == pytest.approx(scores[one["token_str"]], rel=1e-5)  # another program
    assert len(filler("ab[MASK]d", targets=["j", "c"], top_k=1)) == 1
    assert filler("ab[MASK]d", targets="j")[0]["token_str"] == "j"


def test_a_long_text_is_refused_or_cut_or_read_around_each_mask(filler):
    """Catches: a text that is cut though nobody asked; a window that misses its mask."""
    long = "[MASK]" + "abc" * 20 + "[MASK]de"
    with pytest.raises(RequestError, match="truncation=True"):
        filler(long)
    with pytest.raises(RequestError, match="has a mask at token 62"):
        filler(long, truncation=True)
    first, second = filler(long, truncation="stride")
    assert first[0]["sequence"] == first[0]["token_str"] + "abc" * 20 + "<mask>de"
    near = filler.tokenizer.encode("abc" * 20).tolist()[-44:]
    assert second[0]["sequence"].endswith(second[0]["token_str"] + "de")
    # What a window holds is what is read: the last 48 tokens, <eos> among them.
    ids = [*near, filler.tokenizer.specials.mask, *filler.tokenizer.encode("de")]
    ((_, candidates, _),) = filler._filled(
        list(filler._rows(0, [*ids, filler.tokenizer.specials.eos], [44], filler.options)), 5, 1
    )
    assert [one["token"] for one in second] == candidates[44].tolist()
    cut = filler("[MASK]" + "abc" * 20, truncation=True)
    assert cut[0]["sequence"].endswith("abc" * 20)
    read = filler("[MASK]" + "abc" * 15)  # 48 tokens with the marks
    assert [(one["token"], one["score"]) for one in cut] == [(r["token"], r["score"]) for r in read]


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("ab", {}, "has no [MASK]"),
        ("[MASK]", {"top_k": 0}, "top_k=0 must be in"),
        ("[MASK]", {"targets": "abc"}, "target 'abc' is 3 tokens"),
        ("[MASK]", {"targets": []}, "targets is empty"),
        ("[MASK]", {"topk": 3}, "did you mean 'top_k'?"),
        (3, {}, "takes texts"),
    ],
)
def test_what_is_impossible_is_refused(filler, text, options, told):
    with pytest.raises(RequestError) as error:
        filler(text, **options)
    assert told in str(error.value)


def test_a_causal_model_is_refused(causal):
    with pytest.raises(RequestError, match="cannot fill masks"):
        pipeline("fill-mask", causal)
