"""One split of a TensorFlow Datasets dataset as a source, read through `as_data_source`."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ablax.config import RequestError, suggest
from ablax.data.builtin import BUILDERS
from ablax.data.documents import Source
from ablax.data.tfds_prepare import find_builder, prepare, quiet


class TfdsSource(Source):
    """Documents of a prepared dataset.

    Args:
      builder: a prepared `tfds.core.DatasetBuilder` whose files are ArrayRecord.
      split: the TFDS splits to read, e.g. `train[:90%]` or `train+test`.
      feature: the text feature.
      name_feature: the feature that names a document, if there is one.

    Raises:
      RequestError: no such split, or it is empty.
    """

    def __init__(self, builder: Any, split: str, feature: str, name_feature: str | None = None):
        self._label = f"{builder.info.name}/{split}"
        self._feature = feature
        self._name_feature = name_feature
        try:
            self._rows = builder.as_data_source(split=split)
        except (ValueError, KeyError, AssertionError):
            raise RequestError(
                f"source tfds: {builder.info.name} has no split {split!r}; it has: "
                f"{', '.join(builder.info.splits)}"
            ) from None
        if not len(self._rows):
            raise RequestError(f"source tfds: {self._label} holds no documents; use another split")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:
        return self._value(index, self._feature)

    def name(self, index: int) -> str:
        """The document's own name if it carries one, else `dataset/split:index`."""
        if self._name_feature is None:
            return f"{self._label}:{index}"
        return self._value(index, self._name_feature)

    def _value(self, index: int, feature: str) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        value = self._rows[index % len(self)][feature]
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise RequestError(
                f"source tfds: document {index} of {self._label}: invalid UTF-8 at byte "
                f"{error.start}; choose another text_feature"
            ) from None


def open_builtin(name: str, cache: Path) -> TfdsSource:
    """Prepares one of `BUILDERS` under `cache/tfds` unless it is there, and opens it.

    Raises:
      RequestError: an unknown name, or an interpreter without the text.
    """
    if name not in BUILDERS:
        raise RequestError(f"source builtin: no text {name!r}{suggest(name, BUILDERS)}")
    with (
        quiet(),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # a second's work needs no progress bar
        builder = BUILDERS[name](data_dir=cache / "tfds", file_format="array_record")
        prepare(builder)
    return TfdsSource(builder, "train", "text", "name")


def open_tfds(
    name: str,
    splits: dict[str, str],
    text_feature: str | None,
    data_dir: str | None,
    cache: Path,
    offline: bool,
) -> dict[str, Source]:
    """Opens the splits of `splits` (ours to TFDS's); a dataset may lack `validation` and `test`.

    Raises:
      RequestError: an unknown dataset, split or feature, or it is not prepared and `offline`.
    """
    if not name:
        raise RequestError("source tfds: no dataset named; give it as `tfds:NAME`")
    with quiet():
        builder = find_builder(name, data_dir, cache, offline)
    feature = _text_feature(builder.info, text_feature)
    opened: dict[str, Source] = {}
    for split, theirs in splits.items():
        first = theirs.partition("+")[0].partition("[")[0]
        # A split by its usual name may be missing; one that somebody named may not.
        if split == "train" or theirs != split or first in builder.info.splits:
            opened[split] = TfdsSource(builder, theirs, feature)
    return opened


def _text_feature(info: Any, wanted: str | None) -> str:
    features = info.features if isinstance(info.features, tfds.features.FeaturesDict) else {}
    names = sorted(name for name, feature in features.items() if _is_text(feature))
    listed = ", ".join(names) or "none"
    if wanted is not None and wanted not in names:
        raise RequestError(
            f"source tfds: {info.name} has no text feature {wanted!r}; it has: {listed}"
        )
    if wanted is None and "text" not in names and len(names) != 1:
        raise RequestError(
            f"source tfds: {info.name}: set text_feature to the one to read, of: {listed}"
        )
    return wanted or ("text" if "text" in names else names[0])


def _is_text(feature: Any) -> bool:
    scalar = isinstance(feature, tfds.features.Tensor) and feature.shape == ()
    return scalar and feature.np_dtype in (object, np.dtype(object))
