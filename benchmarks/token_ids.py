"""Measure how fast rows that are tokenized already become samples, against a loop over the ids in Python.

    python -m benchmarks.token_ids [--rows 400] [--repeats 5] [--out benchmarks/results/token_ids.json]

A row has 200 to 2,000 ids of a vocabulary of 50,257, labels whose first part is -100, and an attention mask of 1s. The rows are in memory, so
the reading of files does not count. The loop compares every label with its id, writes the ids as decimal numbers, and finds the spans of
the answers, as skillshard did before it compared whole arrays. Both run in turns in one process, `--repeats` times after one pass that compares the
samples. The measure is the number of ids per CPU-second as a ratio to the loop of the same turn: the median, and the smallest and the largest ratio.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixers import machine
from skillshard.corpus.token_ids import NOT_LEARNED, TokenFields

VOCAB_SIZE = 50_257
Row = dict[str, list[int]]
Result = tuple[str, list[tuple[int, int]] | None]


def rows_of(num: int) -> list[Row]:
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for size in rng.integers(200, 2000, num).tolist():
        ids = rng.integers(0, VOCAB_SIZE, size).tolist()
        prompt = int(rng.integers(1, size))
        rows.append({"ids": ids, "labels": [NOT_LEARNED] * prompt + ids[prompt:], "mask": [1] * size})
    return rows


def loop(row: Row, fields: TokenFields) -> Result:
    """Check a row and make its text and its spans, one id after the other."""
    ids = row["ids"]
    if not {int}.issuperset(map(type, ids)) or min(ids) < 0 or max(ids) >= VOCAB_SIZE:
        raise ValueError("a bad id")
    words = list(map(str, ids))
    if fields.token_labels is None:
        return " ".join(words), None
    labels = row["labels"]
    if not {int}.issuperset(map(type, labels)):
        raise ValueError("a bad label")
    for label, token in zip(labels, ids, strict=True):
        if label not in (token, NOT_LEARNED):
            raise ValueError("a bad label")
    learned = [label != NOT_LEARNED for label in labels]
    if fields.attention_mask is not None:
        bits = list(map(bool, row["mask"]))
        words = [word for word, bit in zip(words, bits, strict=True) if bit]
        learned = [mark for mark, bit in zip(learned, bits, strict=True) if bit]
    spans: list[tuple[int, int]] = []
    ends = accumulate(len(word) + 1 for word in words)
    for word, end, mark, before in zip(words, ends, learned, (False, *learned), strict=False):
        if mark:
            start = spans.pop()[0] if before else end - 1 - len(word)
            spans.append((start, end - 1))
    return " ".join(words), spans


def measure(rows: list[Row], fields: TokenFields, repeats: int) -> dict[str, Any]:
    ways: dict[str, Callable[[Row], Result]] = {
        "loop": lambda row: loop(row, fields),
        "skillshard": lambda row: fields.text(row, row, "row"),
    }
    if any(ways["loop"](row) != ways["skillshard"](row) for row in rows):
        raise SystemExit("the loop and skillshard give other samples")
    num_ids = sum(len(row["ids"]) for row in rows)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            begin = time.process_time()
            for row in rows:
                way(row)
            rates[name].append(num_ids / (time.process_time() - begin))
    ratios = [own / base for own, base in zip(rates["skillshard"], rates["loop"], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
        "million_ids_per_cpu_s": {name: round(statistics.median(own) / 1e6, 2) for name, own in rates.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400, help="Number of rows.")
    parser.add_argument("--repeats", type=int, default=5, help="Number of turns.")
    parser.add_argument("--out", type=Path, help="JSON file to write.")
    arguments = parser.parse_args()
    rows = rows_of(arguments.rows)
    forms = {
        "ids": TokenFields("ids", None, None, None, VOCAB_SIZE),
        "ids, labels": TokenFields("ids", "labels", None, None, VOCAB_SIZE),
        "ids, labels, attention mask": TokenFields("ids", "labels", None, "mask", VOCAB_SIZE),
    }
    results = {name: measure(rows, fields, arguments.repeats) for name, fields in forms.items()}
    record = {"rows": arguments.rows, "repeats": arguments.repeats, "machine": machine(), "results": results}
    print(json.dumps(record, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
