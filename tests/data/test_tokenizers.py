"""Laws of tokenizers: what is lossless comes back, special tokens are never read from text, training
is deterministic, and files made elsewhere give their own ids."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ablax.config import RequestError
from ablax.data.specials import NAMES
from ablax.data.tokenizers import TOKENIZERS, build_tokenizer, load_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. <eos> The dog doesn't mind, it sleeps.\n" * 4,
    "Numbers: 3.14, 42 and 1999!\r\nnaïve café — 日本語 🙂\tend <unk> [MASK]\n" * 3,
    "the <eos> <eos> <eos> <mask> <mask> token spelled often enough to be merged <eos> <eos>\n" * 9,
]
CONFIGS = {
    "byte": TOKENIZERS["byte"](),
    "character": TOKENIZERS["character"](),
    "word": TOKENIZERS["word"](),
    "bpe": TOKENIZERS["bpe"](vocab_size=340),
    "wordpiece": TOKENIZERS["wordpiece"](vocab_size=150),
    "unigram": TOKENIZERS["unigram"](vocab_size=150),
}
TRAINED = list(CONFIGS)
SPECIALS = ("eos", "bos", "mask")


@pytest.fixture(scope="session")
def trained():
    return {kind: build_tokenizer(CONFIGS[kind], iter(CORPUS), SPECIALS) for kind in TRAINED}


@pytest.fixture(scope="session")
def reference():
    """40 kB of prose that every interpreter has."""
    topics = pytest.importorskip("pydoc_data.topics").topics
    return [topics[name][:4000] for name in sorted(topics)[:10]]


@pytest.fixture(scope="session")
def gpt2(shared_data):
    return build_tokenizer(TOKENIZERS["file"](str(shared_data / "gpt2-bpe")), [])


# -- text comes back -----------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.lists(
    st.sampled_from(
        ["<eos>", "<|endoftext|>", "[MASK]", "\r\n", " ", "\0", "🙂", "é", "a", "Ġ", "▁"]
    )
).map("".join)


@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT)
@example("<eos><mask> <unk>\r\n\x00\x85\u2028 \ufeff👩‍👩‍👧 e\u0301\ufffd")
def test_lossless_kinds_return_every_text(trained, text):
    """Catches normalisation, stripped spaces, changed line ends, and special tokens read from text."""
    for kind in ("byte", "bpe"):
        tokenizer = trained[kind]
        ids = tokenizer.encode(text)
        assert tokenizer.lossless
        assert ids.dtype == np.int32
        assert not tokenizer.specials.ids() & set(ids.tolist())
        assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_specials=False) == text


@settings(max_examples=60, deadline=None)
@given(text=ANY_TEXT)
def test_gpt2_returns_every_text(gpt2, text):
    """Catches the text `<|endoftext|>` becoming the token."""
    assert gpt2.lossless
    assert gpt2.decode(gpt2.encode(text)) == text
    assert gpt2.specials.eos not in gpt2.encode(text)


@settings(max_examples=50, deadline=None)
@given(text=st.text(sorted(set("".join(CORPUS))), max_size=40))
def test_characters_return_their_alphabet(trained, text):
    """Catches an alphabet in another order at decoding."""
    assert trained["character"].decode(trained["character"].encode(text)) == text


def test_unknown_characters_stop_or_become_unk():
    """Catches characters dropped without a word, and a lossless claim with <unk>."""
    strict = build_tokenizer(TOKENIZERS["character"](), ["abc"])
    with pytest.raises(RequestError, match=r"'é' \(at 2\) is not in the tokenizer's alphabet of 3"):
        strict.encode("abé")
    assert strict.vocab_size == 3
    loose = build_tokenizer(TOKENIZERS["character"](unk=True), ["abc"])
    assert loose.encode("aéb").tolist() == [1, 0, 2]
    assert loose.decode([1, 0, 2]) == "a\ufffdb"
    assert (strict.lossless, loose.lossless) == (True, False)


def test_half_a_character_is_replaced(trained, gpt2):
    """Catches an exception in the middle of a character while text is generated."""
    for tokenizer in (trained["byte"], gpt2):
        ids = tokenizer.encode("a🙂")
        assert tokenizer.decode(ids[:-1]).rstrip("\ufffd") == "a"
        assert tokenizer.token_text(int(ids[-1])).startswith("\\x")


# -- special tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRAINED)
def test_special_tokens_come_first_and_in_order(trained, kind):
    """Catches ids in the order asked for, and unneeded special tokens."""
    specials = trained[kind].specials
    needs_unk = kind in ("word", "wordpiece", "unigram")
    present = [name for name in NAMES if getattr(specials, name) is not None]
    assert present == (["bos", "eos", "unk", "mask"] if needs_unk else ["bos", "eos", "mask"])
    assert [getattr(specials, name) for name in present] == list(range(len(present)))
    assert trained[kind].token_text(specials.eos) == "<eos>"
    assert max(map(max, trained[kind].encode_batch(CORPUS))) < trained[kind].vocab_size


@pytest.mark.parametrize("kind", TRAINED)
def test_text_that_spells_a_special_token_is_text(trained, kind):
    """Catches `<eos>` in a document ending it: the library's added tokens, or a merged or counted
    piece that has the special token's id."""
    specials = trained[kind].specials
    ids = set(trained[kind].encode("<eos> a<eos><mask> <bos>").tolist())
    assert not (specials.ids() - {specials.unk}) & ids


def test_no_special_token_unless_asked_for(tmp_path):
    """Catches characters of Shakespeare having V = 66."""
    assert build_tokenizer(TOKENIZERS["byte"](), []).vocab_size == 256
    assert build_tokenizer(TOKENIZERS["character"](), ["ba"]).encode("ab").tolist() == [0, 1]
    whole = build_tokenizer(TOKENIZERS["byte"](), [], NAMES)
    assert whole.specials.sentinels == tuple(range(7, 107))
    assert whole.vocab_size == 256 + 107
    whole.save(tmp_path)
    assert load_tokenizer(tmp_path).specials == whole.specials
    with pytest.raises(RequestError, match="unknown special token 'mas'; did you mean 'mask'"):
        build_tokenizer(TOKENIZERS["byte"](), [], ("mas",))


@pytest.mark.parametrize("kind", TRAINED)
def test_decoding_skips_or_writes_special_tokens(trained, kind):
    """Catches special tokens lost when wanted, or written when not."""
    tokenizer, eos = trained[kind], trained[kind].specials.eos
    ids = [eos, *tokenizer.encode("the dog"), eos, eos]
    assert tokenizer.decode(ids) == "the dog"
    assert tokenizer.decode(ids, skip_specials=False) == "<eos>the dog<eos><eos>"
    assert tokenizer.decode([]) == ""
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="outside"):
            tokenizer.decode([bad])
        with pytest.raises(ValueError, match="outside"):
            tokenizer.token_text(bad)


# -- training and saving -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRAINED)
def test_saved_and_loaded_is_the_same(trained, kind, tmp_path):
    """Catches a loaded tokenizer with other ids, special tokens, losslessness or fingerprint."""
    saved = trained[kind]
    saved.save(tmp_path / "tokenizer")
    (file,) = (tmp_path / "tokenizer").iterdir()
    json.loads(file.read_text())
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded.fingerprint == saved.fingerprint
    for name in ("vocab_size", "specials", "lossless"):
        assert getattr(loaded, name) == getattr(saved, name)
    for one, two in zip(saved.encode_batch(CORPUS), loaded.encode_batch(CORPUS)):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(loaded.word_starts(), saved.word_starts())


def test_loading_what_is_no_tokenizer(tmp_path):
    """Catches tracebacks for a missing or damaged file."""
    with pytest.raises(RequestError, match=r"holds no tokenizer: .*\.json is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "ablax_tokenizer.json").write_text('{"kind": "byte"')
    with pytest.raises(RequestError, match="is not a tokenizer of Ablax"):
        load_tokenizer(tmp_path)


def test_training_is_deterministic(reference):
    """Catches the order of the library's hash tables in ids, merges and scores; their seeds differ
    from one training to the next."""
    rare = " ".join(chr(0x4E00 + 7 * number) for number in range(30))  # in no unigram piece
    for kind in ("bpe", "wordpiece", "unigram", "word"):
        config = TOKENIZERS[kind](vocab_size=500)
        texts = [*reference, rare]
        prints = {build_tokenizer(config, iter(texts)).fingerprint for _ in range(3)}
        assert len(prints) == 1, kind


@pytest.mark.parametrize("kind", ["word", "bpe", "wordpiece", "unigram", "character"])
def test_training_needs_text_and_room(kind):
    """Catches a tokenizer of nothing, and a vocabulary smaller than its bytes or special tokens."""
    with pytest.raises(RequestError, match="holds no"):
        build_tokenizer(CONFIGS[kind], iter([]), SPECIALS)
    if kind != "character":
        with pytest.raises(RequestError, match="vocab_size=3 has no room"):
            build_tokenizer(TOKENIZERS[kind](vocab_size=3), CORPUS, SPECIALS)


def test_unigrams_have_room_for_the_alphabet():
    """Catches: the library's bare exception below it, and its limit forgotten, or no end found, right above it."""
    for texts in (CORPUS, ["ab"], ["ab cd", "e\0f \u2581"], ["\n\n"]):
        with pytest.raises(RequestError, match=r"room for the text's \d+ characters") as error:
            build_tokenizer(TOKENIZERS["unigram"](vocab_size=5), texts, SPECIALS)
        least = int(str(error.value).rpartition(" ")[2])
        with pytest.raises(RequestError, match=f"set it to at least {least}"):
            build_tokenizer(TOKENIZERS["unigram"](vocab_size=least - 1), texts, SPECIALS)
        built = build_tokenizer(TOKENIZERS["unigram"](vocab_size=least), texts, SPECIALS)
        assert built.vocab_size <= least
        assert not [c for c in set().union(*texts) if built.specials.unk in built.encode(c)]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_a_vocabulary_beyond_all_memory_is_refused(kind):
    """Catches: the library ending the process, or an OverflowError of its."""
    for size in (2**24 + 1, 10**9, 2**64):
        with pytest.raises(RequestError, match=f"vocab_size={size} is more than can be learned"):
            build_tokenizer(TOKENIZERS[kind](vocab_size=size), CORPUS, SPECIALS)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_vocabulary_has_the_size_asked_for(reference, kind):
    """Catches special tokens on top of vocab_size, and training_characters that nothing reads."""
    whole = build_tokenizer(TOKENIZERS[kind](vocab_size=500), reference, SPECIALS)
    assert whole.vocab_size == 500
    part = TOKENIZERS[kind](vocab_size=500, training_characters=len(reference[0]) + 99)
    start = [reference[0], reference[1][:99]]
    assert (
        build_tokenizer(part, reference, SPECIALS).fingerprint
        == build_tokenizer(TOKENIZERS[kind](vocab_size=500), start, SPECIALS).fingerprint
        != whole.fingerprint
    )


def test_words_are_counted_or_given(tmp_path):
    """Catches words in another order than by count and then text, `<unk>` counted as a word, rare
    words kept, and newlines lost."""
    text = ["b b a a c\nb <unk> <unk> <unk> <unk>\n"]
    every = build_tokenizer(TOKENIZERS["word"](), text)
    assert [every.token_text(i) for i in range(every.vocab_size)] == ["<unk>", "b", "a", "c"]
    assert every.encode("b <unk> zzz\nc").tolist() == [1, 0, 0, 3]
    lines = build_tokenizer(TOKENIZERS["word"](min_count=2, newline=True), text)
    assert [lines.token_text(i) for i in range(lines.vocab_size)] == ["<unk>", "b", "\n", "a"]
    assert lines.decode(lines.encode("a b\nc\n")) == "a b\n<unk>\n"
    assert build_tokenizer(TOKENIZERS["word"](vocab_size=2), text).vocab_size == 2
    (tmp_path / "words").write_text("c\n\na\r\n<unk>\n")
    fixed = build_tokenizer(TOKENIZERS["word"](vocabulary=str(tmp_path / "words")), [], ("eos",))
    assert fixed.encode("a b c").tolist() == [3, 1, 2]
    (tmp_path / "words").write_text("c\na\nc\n")
    for name, match in (("words", "'c' stands twice"), ("absent", "No such file")):
        with pytest.raises(RequestError, match=match):
            build_tokenizer(TOKENIZERS["word"](vocabulary=str(tmp_path / name)), [])
    with pytest.raises(RequestError, match="vocabulary fixes the words"):
        TOKENIZERS["word"](vocabulary="words", vocab_size=9)


def test_word_starts(trained, gpt2):
    """Catches pieces inside a word that pass for its beginning, in each convention."""
    for kind, text, expected in (
        ("wordpiece", "zebra fox", None),
        ("bpe", "the dog, the <", None),
        ("byte", "a b.c", [0, 1, 0, 1, 0]),
        ("character", "a b.é", [0, 1, 0, 1, 0]),
        ("word", "the zzz dog", [1, 1, 1]),
    ):
        tokenizer = trained[kind]
        starts = tokenizer.word_starts()
        assert starts.shape == (tokenizer.vocab_size,)
        assert starts[list(tokenizer.specials.ids())].all()
        ids = tokenizer.encode(text)
        texts = [tokenizer.token_text(int(token)) for token in ids]
        if kind == "wordpiece":
            expected = [not text.startswith("##") for text in texts]
            assert not all(expected)
        if kind == "bpe":
            expected = [not (text[0].isalnum()) for text in texts]
        assert starts[ids].tolist() == [bool(start) for start in expected], kind
    ids, starts = gpt2.encode("Unbelievably good, naïve—日"), gpt2.word_starts()
    pieces = [(gpt2.token_text(int(i)), bool(starts[i])) for i in ids]
    assert pieces[:6] == [
        ("Un", False),
        ("bel", False),
        ("iev", False),
        ("ably", False),
        (" good", True),
        (",", True),
    ]
    assert ("—", True) in pieces
    assert pieces[-1][1] is False


# -- made elsewhere ------------------------------------------------------------------------------


def test_gpt2_counts(gpt2, shared_data):
    """Catches another split or another regular expression: nanoGPT's 301,966 and 36,059 tokens of
    Shakespeare, 258,659 of WikiText-2's validation text."""
    with open(shared_data / "tinyshakespeare" / "input.txt", newline="", encoding="utf-8") as file:
        text = file.read()
    cut = int(len(text) * 0.9)
    assert [len(ids) for ids in gpt2.encode_batch([text[:cut], text[cut:]])] == [301_966, 36_059]
    with open(shared_data / "wikitext-2" / "valid.txt", newline="", encoding="utf-8") as file:
        assert len(gpt2.encode(file.read())) == 258_659
    assert gpt2.vocab_size == 50_257
    assert gpt2.specials.bos == gpt2.specials.eos == 50_256
    assert gpt2.token_text(50_256) == "<|endoftext|>"
    shakespeare = build_tokenizer(TOKENIZERS["character"](), [text])
    assert shakespeare.vocab_size == 65


@pytest.mark.parametrize(("case", "size"), [("cased", 28_996), ("uncased", 30_522)])
def test_bert_ids_are_transformers(shared_data, case, size):
    """Catches case, accents, Chinese characters or control characters handled otherwise."""
    transformers = pytest.importorskip("transformers")
    path = shared_data / "bert-vocab" / f"bert_base_{case}_vocab.txt"
    ours = build_tokenizer(TOKENIZERS["file"](str(path)), [])
    theirs = transformers.BertTokenizer(str(path), do_lower_case=case == "uncased")
    assert ours.vocab_size == size
    specials = ours.specials
    for name in ("pad", "unk", "mask", "cls", "sep"):
        assert getattr(specials, name) == getattr(theirs, f"{name}_token_id")
    assert (specials.bos, specials.eos) == (specials.cls, specials.sep)
    for text in (*CORPUS[:2], "Straße İstanbul 東京\u200b tower\x07 don't e\u0301 x²  ﬁn"):
        text = text.replace("[MASK]", "mask")
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text).tolist() == expected
    assert specials.mask not in ours.encode("a [MASK] b")
    assert not ours.lossless


def test_a_tokenizer_json_keeps_its_ids(trained, tmp_path):
    """Catches shifted ids, added tokens around the text, and special tokens read from text."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<mask>", "<extra_id_0>", "<extra_id_1>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    library.enable_truncation(5)
    library.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        ours = build_tokenizer(TOKENIZERS["file"](str(path)), [])
        library.no_truncation()
        plain = "The dog sleeps over the fox"
        assert ours.encode(plain).tolist() == library.encode(plain, add_special_tokens=False).ids
        assert (ours.specials.bos, ours.specials.eos, ours.specials.mask) == (0, 1, 2)
        assert ours.specials.sentinels == (3, 4)
        assert ours.specials.unk is None
        assert ours.lossless
        assert ours.decode(ours.encode("a <s> b</s>")) == "a <s> b</s>"
        assert not {0, 1} & set(ours.encode("a <s> b</s>").tolist())


def test_files_that_are_no_tokenizer(tmp_path):
    """Catches the library's bare exceptions."""
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.txt").write_text("the\ndog\n")
    (tmp_path / "c.bin").write_text("?")
    for name, match in (
        ("a.json", "cannot be read"),
        ("b.txt", r"has no \[UNK\]"),
        ("c.bin", "is no tokenizer; give a tokenizer.json"),
        ("", "is no tokenizer"),
        ("absent", "does not exist"),
    ):
        with pytest.raises(RequestError, match=match) as error:
            build_tokenizer(TOKENIZERS["file"](str(tmp_path / name)), [])
        assert "\n" not in str(error.value)
    with pytest.raises(RequestError, match=r"lower_case is read with a vocab\.txt only"):
        build_tokenizer(TOKENIZERS["file"](str(tmp_path / "a.json"), lower_case=True), [])


def test_no_other_framework_is_imported():
    """Catches a tokenizer that pulls in transformers or torch."""
    code = (
        "import sys, ablax.data.tokenizers;"
        "print([m for m in ('jax', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr
