"""Tokenizers whose vocabulary is learned from the training text, by the `tokenizers` library."""

import dataclasses
import json
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ablax.config import RequestError, knob
from ablax.data.library_tokenizer import LibraryTokenizer
from ablax.data.specials import place_first
from ablax.data.tokenizer import Tokenizer

TRAINING_CHARACTERS = 200_000_000
UNK = "<unk>"


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
        _train(library, trainer, texts, self.training_characters)
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
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            min_frequency=self.min_count,
            special_tokens=[UNK],
            show_progress=False,
        )
        _train(library, trainer, texts, self.training_characters)
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
          RequestError: `vocab_size` has no room, or there is no text.
        """
        ids, written = place_first((*specials, "unk"))
        size = _room(self.vocab_size, len(written), 1, "any piece") + 1
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
        _train(library, trainer, texts, self.training_characters)
        return LibraryTokenizer(_forget_added(library), ids, written, imported=False)


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
    return vocab_size - specials


def _train(
    library: tokenizers.Tokenizer,
    trainer: trainers.Trainer,
    texts: Iterable[str],
    characters: int,
) -> None:
    seen = 0

    def counted() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            text = text[: characters - seen]
            seen += len(text)
            yield text
            if seen == characters:
                return

    library.train_from_iterator(counted(), trainer)
    if not seen:
        raise RequestError("tokenizer: the training split holds no text to learn from")


def _forget_added(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Without the list of tokens that are cut out of a text before anything else."""
    whole = json.loads(library.to_str())
    whole["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(whole))
