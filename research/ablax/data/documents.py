"""A source: documents with random access and a content fingerprint."""

import abc
import functools
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

DIGEST_BYTES = 16


class Source(abc.ABC):
    """Documents by number. A subclass gives `__len__`, `__getitem__` and `name`.

    Attributes:
      skipped: (name, reason) of each document that could not be read and was left out because
        the configuration says `on_error="skip"`.
    """

    skipped: Sequence[tuple[str, str]] = ()

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of documents."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> str:
        """The text of a document, its line ends untouched. Raises IndexError past the end."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """A name to show to people: a relative path, `file:line` or a key."""

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    @functools.cached_property
    def digests(self) -> np.ndarray:
        """uint8 [documents, 16]: the first bytes of each document's SHA-256. Reads every document
        once; splits and fingerprints are made from it."""
        digests = np.empty((len(self), DIGEST_BYTES), np.uint8)
        for index, text in enumerate(self):
            digest = hashlib.sha256(text.encode()).digest()
            digests[index] = np.frombuffer(digest[:DIGEST_BYTES], np.uint8)
        return digests

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the documents in their order. Names and places do not enter, so that a copy
        of the files on another machine has the same one."""
        return hashlib.sha256(self.digests.tobytes()).hexdigest()


class Texts(Source):
    """Documents held in memory.

    Args:
      texts: one string per document.
      names: one name per document; their numbers by default.
    """

    def __init__(self, texts: Sequence[str], names: Sequence[str] | None = None):
        if names is not None and len(names) != len(texts):
            raise ValueError(f"{len(names)} names for {len(texts)} documents")
        self._texts = texts
        self._names = names

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> str:
        return self._texts[index]

    def name(self, index: int) -> str:
        return str(index) if self._names is None else self._names[index]
