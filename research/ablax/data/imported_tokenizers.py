"""Tokenizers that were made elsewhere; their ids stay."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ablax.config import RequestError, knob
from ablax.data.saved_tokenizers import load_tokenizer
from ablax.data.specials import recognise
from ablax.data.subword_tokenizer import LibraryTokenizer
from ablax.data.tokenizer import FILE, Tokenizer
from ablax.data.trained_tokenizers import bert_library

GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


@dataclasses.dataclass(frozen=True)
class FileConfig:
    """A file or folder: `tokenizer.json`, GPT-2's `encoder.json` with `vocab.bpe` (or `vocab.json`
    with `merges.txt`), BERT's `vocab.txt`, or the folder `tokenizer` of a run. Its ids stay, and its
    special tokens are those that it has."""

    ARGUMENT: ClassVar[str] = "path"

    path: str = knob("", "the file or the folder")
    lower_case: bool | None = knob(
        None,
        "vocab.txt only: whether case and accents are dropped; by default if it has no capital",
    )

    def build(self, texts: Iterable[str], specials: tuple[str, ...]) -> Tokenizer:
        """Loads it; `texts` is not read and nothing is added for `specials`.

        Raises:
          RequestError: there is no such file, or it is none of these.
        """
        if (folder := Path(self.path).expanduser() / FILE).is_file() and self.path:
            self._refuse_lower_case(folder)
            return load_tokenizer(folder.parent)
        library = self.opened()
        found, written = recognise(library.get_vocab(with_added_tokens=True))
        return LibraryTokenizer(library, found, written, imported=True)

    def opened(self) -> tokenizers.Tokenizer:
        """The tokenizer as the library `tokenizers` has it.

        Raises:
          RequestError: see `build`.
        """
        if not self.path:
            raise RequestError("tokenizer file: no path given; give it as `file:PATH`")
        path = Path(self.path).expanduser()
        if not path.exists():
            raise RequestError(f"tokenizer file: {path} does not exist; check the path")
        try:
            return self._open(path)
        except RequestError:
            raise
        except Exception as error:  # the library raises bare Exception for a damaged file
            reason = str(error).splitlines()[0]
            raise RequestError(f"tokenizer file: {path} cannot be read: {reason}") from error

    def _open(self, path: Path) -> tokenizers.Tokenizer:
        folder = path if path.is_dir() else path.parent
        if path.is_dir() and (path / "tokenizer.json").exists():
            path = path / "tokenizer.json"
        for vocabulary, merges in GPT2_FILES:
            here = path.is_dir() or path.name in (vocabulary, merges)
            if here and (folder / vocabulary).exists() and (folder / merges).exists():
                self._refuse_lower_case(path)
                return _gpt2(folder / vocabulary, folder / merges)
        if path.is_dir() and (path / "vocab.txt").exists():
            path = path / "vocab.txt"
        if path.suffix == ".txt":
            return self._bert(path)
        if path.suffix == ".json":
            self._refuse_lower_case(path)
            return tokenizers.Tokenizer.from_file(str(path))
        raise RequestError(
            f"tokenizer file: {path} is no tokenizer; give a tokenizer.json, a vocab.txt, or a "
            "folder with encoder.json and vocab.bpe (or vocab.json and merges.txt)"
        )

    def _refuse_lower_case(self, path: Path) -> None:
        if self.lower_case is not None:
            raise RequestError(
                f"tokenizer.lower_case is read with a vocab.txt only, not with {path}; leave it out"
            )

    def _bert(self, path: Path) -> tokenizers.Tokenizer:
        words = path.read_text(encoding="utf-8").split("\n")
        words = words[:-1] if not words[-1] else words
        vocabulary = {word: number for number, word in enumerate(words)}
        if "[UNK]" not in vocabulary:
            raise RequestError(f"tokenizer file: {path} has no [UNK]; is it BERT's vocab.txt?")
        lower_case = self.lower_case
        if lower_case is None:
            lower_case = all(word == word.lower() for word in words if not word.startswith("["))
        return bert_library(models.WordPiece(vocabulary, unk_token="[UNK]"), lower_case)


def _gpt2(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    ids = json.loads(vocabulary.read_text(encoding="utf-8"))
    lines = merges.read_text(encoding="utf-8").split("\n")
    kept = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    pairs = [(left, right) for left, right in kept]
    library = tokenizers.Tokenizer(models.BPE(ids, pairs))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.decoder = decoders.ByteLevel()
    return library
