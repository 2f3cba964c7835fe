"""A tiny dataset of TensorFlow Datasets, prepared locally: three splits, two text features and one that is none."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

COUNTS = {"train": 20, "validation": 5, "test": 3}


def review(count: int, number: int) -> str:
    return f"{count}.{number} é\r\n🙂\0"


def prepare_toy(
    folder: Path,
    name: str = "toy_reviews",
    file_format: str = "array_record",
    counts: Mapping[str, int] = COUNTS,
) -> Path:
    """Writes `name` under `folder`; returns where its files lie.

    Args:
      counts: documents of each split; they are part of every document's text.
    """
    import tensorflow_datasets as tfds

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")
        code_path = None

        def _info(self):
            text = tfds.features.Text()
            features = {
                "review": text,
                "title": text,
                "stars": tfds.features.Tensor(shape=(), dtype=np.int64),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(count) for split, count in counts.items()}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"review": review(count, i), "title": f"t{count}.{i}", "stars": i % 5}

    Toy.name = name
    builder = Toy(data_dir=folder, file_format=file_format)
    builder.download_and_prepare()
    return Path(builder.data_path)
