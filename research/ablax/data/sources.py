"""The table of sources: where documents come from."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from ablax.config import knob
from ablax.data.documents import Source, Texts
from ablax.data.text_source import JsonlConfig, TextConfig

__all__ = ["SOURCES", "BuiltinConfig", "JsonlConfig", "Source", "TextConfig", "Texts", "TfdsConfig"]


@dataclasses.dataclass(frozen=True)
class BuiltinConfig:
    """Text that every machine has (see `ablax.data.builtin`); needs no network."""

    ARGUMENT: ClassVar[str] = "name"

    name: str = knob(
        "python_source",
        "python_source: the interpreter's standard library; python_reference: its language "
        "reference, each section once, 374 kB in Python 3.11",
        choices=("python_source", "python_reference"),
    )

    def build(self, cache: Path, offline: bool) -> dict[str, Source]:
        """Opens the text as `train`, preparing it under `cache/tfds` unless it is there.

        Raises:
          RequestError: an unknown name, or an interpreter without the text.
        """
        from ablax.data.tfds_source import open_builtin

        return {"train": open_builtin(self.name, cache)}


@dataclasses.dataclass(frozen=True)
class TfdsConfig:
    """A dataset of TensorFlow Datasets: `name`, `name/config` or `name/config:version`."""

    ARGUMENT: ClassVar[str] = "name"

    name: str = knob("", "the dataset, as in tensorflow.org/datasets/catalog")
    data_dir: str | None = knob(
        None,
        "where prepared datasets lie; Ablax's cache and TFDS's own folder by default",
        mark="execution",
    )
    text_feature: str | None = knob(
        None, "the feature that is the document; by default `text`, or the only one that is text"
    )
    train_split: str = knob(
        "train",
        "TFDS splits for training, also `train[:90%]` or `train+test`; all that is read "
        "unless split.rule=given",
    )
    validation_split: str = knob("validation", "TFDS splits for validation, for split.rule=given")
    test_split: str = knob("test", "TFDS splits for testing, for split.rule=given; may be absent")

    def build(self, cache: Path, offline: bool) -> dict[str, Source]:
        """Opens the splits that the dataset has, downloading and preparing it if need be.

        Raises:
          RequestError: an unknown dataset, split or feature, or it is not prepared and `offline`.
        """
        from ablax.data.tfds_source import open_tfds

        splits = {
            "train": self.train_split,
            "validation": self.validation_split,
            "test": self.test_split,
        }
        return open_tfds(self.name, splits, self.text_feature, self.data_dir, cache, offline)


SOURCES: dict[str, type] = {
    "builtin": BuiltinConfig,
    "tfds": TfdsConfig,
    "text": TextConfig,
    "jsonl": JsonlConfig,
}
