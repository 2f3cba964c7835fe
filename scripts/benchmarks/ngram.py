"""n-gram models on WikiText-2: perplexity against KenLM's lmplz, and speed.

  python scripts/benchmarks/ngram.py --data=FOLDER     # with train.txt and test.txt of WikiText-2

The references are from lmplz without pruning, `<unk>` an ordinary word, sentence ends predicted,
the vocabulary the training words. Results go to stdout as JSON, a table to stderr.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ablax.commands.output import table
from ablax.models.ngram import NgramConfig

DATA = pathlib.Path(__file__).resolve().parents[2] / "data" / "wikitext-2"
CASES = (  # order, blank lines are empty sentences, tokens scored, perplexity of lmplz
    (5, False, 244_102, 224.81),
    (5, True, 245_569, 220.14),
    (3, True, 245_569, 226.05),
)
FIT_REPEATS, SCORE_REPEATS = 3, 5
COLUMNS = (
    "order",
    "blank_lines",
    "tokens",
    "perplexity",
    "reference_perplexity",
    "fit_seconds",
    "scored_tokens_per_second",
)

Documents = tuple[np.ndarray, np.ndarray]  # tokens int32 [tokens], offsets int64 [documents + 1]


def corpus(folder: pathlib.Path) -> tuple[Documents, Documents, int]:
    """The lines of train and test as documents, and V: the training words, then <bos> and <eos>."""
    train, test = (
        [line.split() for line in (folder / name).open(encoding="utf-8")]
        for name in ("train.txt", "test.txt")
    )
    ids = {word: n for n, word in enumerate(dict.fromkeys(w for line in train for w in line))}

    def encode(lines: list[list[str]]) -> Documents:
        tokens = [ids.get(word, ids["<unk>"]) for line in lines for word in line]
        return np.array(tokens, np.int32), np.cumsum([0, *map(len, lines)], dtype=np.int64)

    return encode(train), encode(test), len(ids) + 2


def without_blank_lines(documents: Documents) -> Documents:
    """The same tokens without the documents that have none."""
    tokens, offsets = documents
    return tokens, np.unique(offsets)


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median wall time."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(folder: pathlib.Path) -> dict[str, Any]:
    """Fits, scores and times every case.

    Args:
      folder: holds train.txt and test.txt of WikiText-2.

    Returns:
      A list under "ngram", one dict a case.
    """
    *texts, vocab_size = corpus(folder)
    rows = []
    for order, blank_lines, reference_tokens, reference in CASES:
        train, test = texts if blank_lines else map(without_blank_lines, texts)
        config = NgramConfig(order=order)
        arguments = (*train, vocab_size, vocab_size - 2, vocab_size - 1)
        model = config.fit(*arguments)
        nats = model.score(*test)
        fit_seconds = seconds(lambda c=config, a=arguments: c.fit(*a), FIT_REPEATS)
        score_seconds = seconds(lambda m=model, t=test: m.score(*t), SCORE_REPEATS)
        rows.append(
            {
                "order": order,
                "blank_lines": blank_lines,
                "tokens": len(nats),
                "reference_tokens": reference_tokens,
                "perplexity": float(np.exp(nats.mean())),
                "reference_perplexity": reference,
                "fit_seconds": fit_seconds,
                "scored_tokens_per_second": len(nats) / score_seconds,
                "parameters": model.parameter_count,
            }
        )
    return {"ngram": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description="n-gram models on WikiText-2")
    parser.add_argument("--data", type=pathlib.Path, default=DATA, metavar="FOLDER")
    folder = parser.parse_args().data
    missing = [name for name in ("train.txt", "test.txt") if not (folder / name).is_file()]
    if missing:
        missing_names = " and no ".join(missing)
        print(
            f"error: {folder} has no {missing_names}; give --data=FOLDER with WikiText-2",
            file=sys.stderr,
        )
        return 2
    result = measure(folder)
    table("n-grams", COLUMNS, [[row[name] for name in COLUMNS] for row in result["ngram"]])
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
