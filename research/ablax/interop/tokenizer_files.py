"""A checkpoint's tokenizer, with the special tokens that it says it has."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from ablax.config import RequestError
from ablax.data.imported_tokenizers import FileConfig
from ablax.data.specials import SPELLINGS, Specials, recognise
from ablax.data.subword_tokenizer import LibraryTokenizer
from ablax.data.tokenizer import Tokenizer

NAMED = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that name special tokens, the one that is believed first."""
STAND_INS = {"bos": "cls", "eos": "sep"}
"""What stands around a document where a vocabulary has nothing else (BERT)."""
NAMES = ("pad", "bos", "eos", "unk", "mask", "cls", "sep")


def read_tokenizer(path: Path, vocab_size: int) -> LibraryTokenizer:
    """The tokenizer of a folder, or a file of one, with room for all ids of a model.

    Args:
      vocab_size: V of the model.

    Raises:
      RequestError: if there is none, or it has more ids than the model.
    """
    folder = path if path.is_dir() else path.parent
    told = _told(folder)
    lower = told.get("do_lower_case") if _only_words(path) else None
    library = FileConfig(str(path), lower).opened()
    vocabulary = library.get_vocab(with_added_tokens=True)
    if max(vocabulary.values()) >= vocab_size:
        raise RequestError(
            f"{path} has ids up to {max(vocabulary.values())}, and the model {vocab_size} rows; they do not belong "
            "together: give the model's own with --tokenizer"
        )
    specials, written = _specials(library, vocabulary, told)
    return LibraryTokenizer(library, specials, written, imported=True, vocab_size=vocab_size)


def _only_words(path: Path) -> bool:
    """Whether a vocab.txt is what will be read."""
    if path.is_file():
        return path.suffix == ".txt"
    return (path / "vocab.txt").exists() and not (path / "tokenizer.json").exists()


def _told(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name in reversed(NAMED):
        try:
            found = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        except ValueError as error:
            raise RequestError(f"{folder / name} cannot be read: {error}") from error
        told |= found
    return told


def _specials(
    library: tokenizers.Tokenizer, vocabulary: Mapping[str, int], told: Mapping[str, Any]
) -> tuple[Specials, dict[int, str]]:
    """Those that the files name; what they are silent about is recognised by its spelling."""
    found, written = recognise(vocabulary)
    named: dict[str, int | None] = {}
    for name in NAMES:
        if f"{name}_token" in told:
            text = told[f"{name}_token"]
            text = text["content"] if isinstance(text, dict) else text
            named[name] = vocabulary.get(text) if text is not None else None
    for mark, stand_in in STAND_INS.items():
        if named.get(stand_in) is not None and named.get(mark) is None:
            named[mark] = named[stand_in]
    specials = dataclasses.replace(found, **named)
    if specials.unk in (specials.bos, specials.eos, specials.pad):
        specials = dataclasses.replace(specials, unk=None)  # which no text becomes
    texts = {number: text for text, number in vocabulary.items()}
    marked = [token for token, added in library.get_added_tokens_decoder().items() if added.special]
    sentinels = {token: text for token, text in written.items() if token in specials.ids()}
    return specials, sentinels | {token: texts[token] for token in (*specials.ids(), *marked)}


def write_tokenizer(tokenizer: Tokenizer, folder: Path, length: int) -> list[str]:
    """Writes a tokenizer as transformers reads it.

    Args:
      length: of a row, in tokens.

    Returns:
      The files' names; none for a tokenizer of the project's own, whose ids the library does not know.
    """
    if not isinstance(tokenizer, LibraryTokenizer) or not tokenizer.imported:
        return []
    named = {f"{name}_token": tokenizer.special_texts[i] for name, i in _own_ids(tokenizer).items()}
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, **named}
    files = {"tokenizer.json": tokenizer.json_text(), NAMED[0]: json.dumps(told, indent=2)}
    for name, text in files.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return list(files)


def ids_of_marks(tokenizer: Tokenizer) -> dict[str, int | None]:
    """The ids of special tokens as config.json has them."""
    ids = _own_ids(tokenizer)
    return {f"{name}_token_id": ids.get(name) for name in ("bos", "eos", "pad")}


def _own_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Name -> id, without `[CLS]` and `[SEP]` where they only stand in for bos and eos."""
    ids = {name: getattr(tokenizer.specials, name) for name in NAMES}
    for mark, stand_in in STAND_INS.items():
        if ids[mark] is not None and tokenizer.special_texts[ids[mark]] in SPELLINGS[stand_in]:
            ids[mark] = None
    return {name: token for name, token in ids.items() if token is not None}
