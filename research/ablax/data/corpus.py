"""The corpus of a run: its splits, its tokenizer, their token stores, and loaders over them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ablax.config import RequestError, family, knob
from ablax.data.layouts import make_layout
from ablax.data.loader import Loader
from ablax.data.progress import Progress
from ablax.data.sources import SOURCES, Source
from ablax.data.splits import SplitConfig, open_splits
from ablax.data.store import TokenStore, build_store, cache_root
from ablax.data.tokenizers import TOKENIZERS, Tokenizer, build_tokenizer

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where documents come from, how they become tokens, and how tokens become rows."""

    source: Any = family(SOURCES, "builtin:python_source", "Where documents come from.")
    split: SplitConfig = knob(SplitConfig(), "Which documents are held out.")
    tokenizer: Any = family(TOKENIZERS, "bpe", "How text becomes tokens.")
    document_marks: bool = knob(
        True, "Whether documents stand between <bos> and <eos>, where the objective uses them."
    )
    layout: Literal["windows", "packed", "streams"] = knob(
        "windows",
        "windows over the joined documents; packed documents; streams, continued from step to step.",
    )
    sequence_length: int = knob(256, "Tokens per row, T.")
    phase: bool = knob(True, "windows only: later epochs start at a seeded offset within T.")
    prefetch: int = knob(8, "Batches prepared ahead.", mark="execution")

    def __post_init__(self):
        if self.sequence_length < 1:
            raise RequestError(f"sequence_length={self.sequence_length} must be at least 1 token")
        if self.prefetch < 1:
            raise RequestError(f"prefetch={self.prefetch} must be at least 1 batch")


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Opened data.

    Attributes:
      config: its knobs.
      tokenizer: trained on the training split, or loaded.
      sources: split name -> documents.
      stores: split name -> their tokens.
      cache: where stores and packing plans lie.
    """

    config: DataConfig
    tokenizer: Tokenizer
    sources: dict[str, Source]
    stores: dict[str, TokenStore]
    cache: Path

    @property
    def marks(self) -> dict[str, int | None]:
        """Ids of the tokens around a document."""
        specials = self.tokenizer.specials
        if not self.config.document_marks:
            return {"bos": None, "eos": None}
        return {"bos": specials.bos, "eos": specials.eos}

    def loader(
        self,
        batch_size: int,
        seed: int,
        transform: Callable[..., Any],
        *,
        split: str = "train",
        process_index: int = 0,
        process_count: int = 1,
    ) -> Loader:
        """Batches of a split: the batch of a step depends on (split, seed, step) and nothing else."""
        layout = make_layout(
            self.config.layout,
            self.stores[split],
            sequence_length=self.config.sequence_length,
            batch_size=batch_size,
            phase=self.config.phase,
            seed=seed,
            root=self.cache,
            bos=self.marks["bos"],
            eos=self.marks["eos"],
        )
        return Loader(
            layout,
            global_batch_size=batch_size,
            seed=seed,
            transform=transform,
            prefetch=self.config.prefetch,
            process_index=process_index,
            process_count=process_count,
        )

    def fingerprints(self) -> dict[str, str]:
        """Of every split's tokens and of the tokenizer."""
        prints = {split: store.fingerprint for split, store in self.stores.items()}
        return prints | {"tokenizer": self.tokenizer.fingerprint}


def open_corpus(
    config: DataConfig,
    specials: tuple[str, ...],
    *,
    tokenizer: Tokenizer | None = None,
    offline: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Opens the documents, trains or loads the tokenizer, and tokenises every split once.

    Args:
      specials: names of the special tokens that the objective needs.
      tokenizer: one that exists already (of a run that goes on).
      offline: forbids the network.
      progress: called with (what, done, total).

    Raises:
      RequestError: for whatever is wrong with the data.
    """
    cache = cache_root() if cache is None else cache
    sources = open_splits(config.source, config.split, cache, offline)
    if tokenizer is None:
        train = sources["train"]
        texts = (train[i] for i in range(len(train)))
        tokenizer = build_tokenizer(config.tokenizer, texts, specials)
    missing = [name for name in specials if getattr(tokenizer.specials, name) is None]
    if missing:
        raise RequestError(
            f"the tokenizer has no {', '.join(missing)} token, which the objective needs; "
            "train one (data.tokenizer=bpe) or set data.document_marks=false if only marks are missing"
        )
    report = progress or (lambda *_: None)
    stores = {
        split: build_store(
            source,
            tokenizer,
            cache,
            progress=lambda done, total, split=split: report(f"tokenising {split}", done, total),
        )
        for split, source in sources.items()
    }
    return Corpus(config, tokenizer, sources, stores, cache)
