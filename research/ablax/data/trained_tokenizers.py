"""Tokenizers whose vocabulary is learned from the training text, by the `tokenizers` library."""

import dataclasses
import json
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ablax.config import RequestError, knob
from ablax.data.specials import place_first
from ablax.data.subword_tokenizer import LibraryTokenizer
from ablax.data.tokenizer import Tokenizer

TRAINING_CHARACTERS = 200_000_000
UNK = "<unk>"
SPACE = "\u2581"
MOST = 2**24
"""Largest vocabulary: the library takes memory for all of it at once, and ends the process where there is none."""


@dataclasses.dataclass(frozen=True)
class BpeConfig:
    """Byte-level byte-pair encoding (Sennrich et al. 2016; on bytes and GPT-2's pieces, Radford et
    al. 2019). Nothing is lost."""

    vocab_size: int = knob(4096, "V at most, special tokens included; fewer if the text is short")
    min_count: int = knob(2, "how often a pair must occur to be merged")
    training_characters: int = knob(
        TRAINING_CHARACTERS, "how much of the training text, from its start, is learned from"
    )

    def build(self, texts: Iterable[str], specials: tuple[str, ...]) -> Tokenizer:
        """Learns the merges.

        Raises:
          RequestError: `vocab_size` has no room for the 256 bytes, or there is no text.
        """
        ids, written = place_first(specials)
        size = _room(self.vocab_size, len(written), 256, "the 256 bytes")
        library = tokenizers.Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=self.min_count,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(_limited(texts, self.training_characters), trainer)
        return LibraryTokenizer(library, ids, written, imported=False)


@dataclasses.dataclass(frozen=True)
class WordPieceConfig:
    """WordPiece as in BERT (Devlin et al. 2019): text is cleaned, split at spaces and punctuation,
    and each word written with its longest pieces. Lossy."""

    vocab_size: int = knob(8192, "V at most, special tokens included")
    min_count: int = knob(2, "how often a pair must occur to be merged")
    lower_case: bool = knob(True, "whether case and accents are dropped")
    training_characters: int = knob(
        TRAINING_CHARACTERS, "how much of the training text, from its start, is learned from"
    )

    def build(self, texts: Iterable[str], specials: tuple[str, ...]) -> Tokenizer:
        """Learns the pieces; <unk> is added.

        Raises:
          RequestError: `vocab_size` has no room for the characters, or there is no text.
        """
        ids, written = place_first((*specials, "unk"))
        size = _room(self.vocab_size, len(written), 1, "any piece") + 1
        library = bert_library(models.WordPiece(unk_token=UNK), self.lower_case)
        texts = list(_limited(texts, self.training_characters))
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            min_frequency=self.min_count,
            special_tokens=[UNK, *_continuations(library, set().union(*texts))],
            show_progress=False,
        )
        library.train_from_iterator(texts, trainer)
        return LibraryTokenizer(_forget_added(library), ids, written, imported=False)


@dataclasses.dataclass(frozen=True)
class UnigramConfig:
    """Unigram language model over pieces of words (Kudo 2018), spaces written as U+2581. Lossy."""

    vocab_size: int = knob(8192, "V at most, special tokens included")
    training_characters: int = knob(
        TRAINING_CHARACTERS, "how much of the training text, from its start, is learned from"
    )

    def build(self, texts: Iterable[str], specials: tuple[str, ...]) -> Tokenizer:
        """Learns the pieces; <unk> is added.

        Raises:
          RequestError: `vocab_size` has no room for the characters, or there is no text.
        """
        ids, written = place_first((*specials, "unk"))
        texts = list(_limited(texts, self.training_characters))
        # The library refuses fewer than the characters in words of its own, and forgets its limit at exactly as many.
        characters = len(set().union(*texts) - {" "} | {SPACE})
        what = f"the text's {characters} characters, one piece more"
        size = _room(self.vocab_size, len(written), characters + 1, what) + 1
        library = tokenizers.Tokenizer(models.Unigram())
        # Lines are apart, as in SentencePiece, which reads line by line; their ends are kept.
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(r"\n+"), behavior="isolated"),
                pre_tokenizers.Metaspace(prepend_scheme="first"),
            ]
        )
        library.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=[UNK], unk_token=UNK, show_progress=False
        )
        library.train_from_iterator(texts, trainer)
        return LibraryTokenizer(_settled(library), ids, written, imported=False)


def bert_library(model: models.Model, lower_case: bool) -> tokenizers.Tokenizer:
    """BERT's normalisation, splitting and joining around a WordPiece model."""
    library = tokenizers.Tokenizer(model)
    library.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    return library


def _room(vocab_size: int, specials: int, least: int, what: str) -> int:
    if vocab_size < least + specials:
        raise RequestError(
            f"tokenizer.vocab_size={vocab_size} has no room for {what} and {specials} special "
            f"tokens; set it to at least {least + specials}"
        )
    if vocab_size > MOST:
        raise RequestError(
            f"tokenizer.vocab_size={vocab_size} is more than can be learned; set it to at most {MOST}"
        )
    return vocab_size - specials


def _limited(texts: Iterable[str], characters: int) -> Iterator[str]:
    """The first characters of the training text."""
    left = characters
    for text in texts:
        yield text[:left]
        left -= len(text[:left])
        if not left:
            return
    if left == characters:
        raise RequestError("tokenizer: the training split holds no text to learn from")


def _continuations(library: tokenizers.Tokenizer, alphabet: set[str]) -> list[str]:
    """`##x` for every character x that may continue a word, sorted. The trainer gives them ids in
    the order of a hash table otherwise, and breaks ties by id, so that no two runs are alike
    (huggingface/tokenizers issue 1794)."""
    found: set[str] = set()
    for character in alphabet:
        word = library.normalizer.normalize_str("a" + character)
        pieces = library.pre_tokenizer.pre_tokenize_str(word)
        found.update(pieces[0][0][1:] if pieces else "")
    return ["##" + character for character in sorted(found)]


def _forget_added(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Without the list of tokens that are cut out of a text before anything else."""
    whole = json.loads(library.to_str())
    whole["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(whole))


def _settled(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A unigram model without the marks of the order in which hash tables were walked: scores
    rounded to a hundredth of a nat, pieces by falling score and then by text.

    Single characters that no piece covers get the lowest score and up, in steps of 1e-4 and any
    order; they are put in the order of the characters.
    """
    whole = json.loads(library.to_str())
    whole["added_tokens"] = []
    unk, *pieces = whole["model"]["vocab"]
    lowest = min((score for _, score in pieces), default=0.0)
    steps = {text: (score - lowest) / 1e-4 for text, score in pieces if len(text) == 1}
    spare = {text for text, step in steps.items() if step < len(steps) and _whole(step)}
    scores = {text: lowest if text in spare else score for text, score in pieces}
    ordered = sorted((-round(score, 2), text) for text, score in scores.items())
    whole["model"]["vocab"] = [unk, *([text, -score] for score, text in ordered)]
    return tokenizers.Tokenizer.from_str(json.dumps(whole))


def _whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-3
