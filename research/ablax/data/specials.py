"""Special tokens: which there are, their ids and how they are written."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ablax.config import RequestError, suggest

SENTINELS = 100
"""How many sentinels `sentinels` stands for (Raffel et al. 2020, section 2.1.4, as released)."""


@dataclasses.dataclass(frozen=True)
class Specials:
    """Ids of the special tokens, None where a vocabulary has none.

    Attributes:
      pad: fills rows; padding itself is decided by masks, never by this id.
      bos, eos: before and after a document.
      unk: stands for text that the vocabulary cannot write.
      mask: hides a token from a masked model.
      cls, sep: BERT's first token, and the one that ends a part.
      sentinels: stand for the spans that were taken out, first to last.
    """

    pad: int | None = None
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    mask: int | None = None
    cls: int | None = None
    sep: int | None = None
    sentinels: tuple[int, ...] | None = None

    def ids(self) -> set[int]:
        """Every id in use."""
        single = {getattr(self, name) for name in NAMES if name != "sentinels"}
        return (single - {None}) | set(self.sentinels or ())


NAMES = tuple(field.name for field in dataclasses.fields(Specials))


def place_first(wanted: Iterable[str]) -> tuple[Specials, dict[int, str]]:
    """Gives ids from 0 to the special tokens that are wanted, in the order of the fields.

    Returns:
      The ids, and how each is written: `<bos>`, `<sentinel_0>`.

    Raises:
      RequestError: there is no special token of that name.
    """
    wanted = set(wanted)
    for name in wanted.difference(NAMES):
        raise RequestError(f"unknown special token {name!r}{suggest(name, NAMES)}")
    ids: dict[str, Any] = {}
    texts: dict[int, str] = {}
    for name in NAMES:
        if name not in wanted:
            continue
        first = len(texts)
        if name == "sentinels":
            ids[name] = tuple(range(first, first + SENTINELS))
            texts |= {first + number: f"<sentinel_{number}>" for number in range(SENTINELS)}
        else:
            ids[name] = first
            texts[first] = f"<{name}>"
    return Specials(**ids), texts


SPELLINGS = {
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "bos": ("<bos>", "<s>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos": ("<eos>", "</s>", "[EOS]", "<|end_of_text|>", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("<cls>", "[CLS]"),
    "sep": ("<sep>", "[SEP]"),
}
"""How other people's vocabularies write special tokens, the likelier first."""


def recognise(vocabulary: Mapping[str, int]) -> tuple[Specials, dict[int, str]]:
    """Finds the special tokens of a vocabulary made elsewhere. Where it has `[CLS]` and `[SEP]` but
    nothing for bos and eos, as BERT's, those stand around a document.

    Args:
      vocabulary: token to id.
    """
    found = {
        name: next((text for text in texts if text in vocabulary), None)
        for name, texts in SPELLINGS.items()
    }
    found["bos"] = found["bos"] or found["cls"]
    found["eos"] = found["eos"] or found["sep"]
    written = [text for text in found.values() if text is not None]
    ids: dict[str, Any] = {
        name: vocabulary[text] for name, text in found.items() if text is not None
    }
    sentinels: list[str] = []
    for pattern in ("<sentinel_{}>", "<extra_id_{}>"):
        while (text := pattern.format(len(sentinels))) in vocabulary:
            sentinels.append(text)
    if sentinels:
        ids["sentinels"] = tuple(vocabulary[text] for text in sentinels)
    return Specials(**ids), {vocabulary[text]: text for text in written + sentinels}
