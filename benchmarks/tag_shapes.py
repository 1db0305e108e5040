"""Measure the CPU time of `tag metadata` on rows of several shapes, against a bare parse of the lines and a bare scan of the tables.

    python -m benchmarks.tag_shapes FOLDER [--rounds 5] [--before CHECKOUT]

A round has a process for each checkout. The process reads each corpus with the bare readers of benchmarks/pipeline.py and tags the
partitions, one after the other. The time of a process to start, of a pool and of the search for repeated ids is not in the numbers.
`--before` adds the code of another checkout of this repository. The results are written to benchmarks/results/tag-shapes.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "tag-shapes.json"
HERE = Path(__file__).parent.parent
NUM_SKILLS = 20
CORPUS_BYTES = 60_000_000


@dataclass(frozen=True)
class Shape:
    """Shape of the rows of a corpus.

    Attributes:
        num_words: Mean number of words of a text, of about 5 bytes each.
        num_fields: Number of fields of the metadata.
        row_bytes: Size of a line, about.
    """

    num_words: int
    num_fields: int
    row_bytes: int


SHAPES = {
    "0.3 kB, 4 fields": Shape(50, 4, 300),
    "0.4 kB, 10 fields": Shape(50, 10, 420),
    "1 kB, 4 fields": Shape(220, 4, 1100),
    "4 kB, 4 fields": Shape(880, 4, 4100),
}
BARE = {"JSONL": "parse", "Parquet": "scan"}


def write_corpus(folder: Path, shape: Shape, num_rows: int) -> None:
    """Write a corpus in four files, as JSONL and as Parquet."""
    import numpy as np
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    words = np.array([f"{word:05x}"[: 2 + word % 4] for word in range(4096)])
    fields = ["skill", "source", "n", "lang", "score", "url", "date", "length", "is_new", "license"][: shape.num_fields]
    for kind in ("jsonl", "parquet"):
        (folder / kind).mkdir(parents=True)
    for number in range(4):
        rows = range(num_rows * number // 4, num_rows * (number + 1) // 4)
        lengths = random.integers(shape.num_words // 2, shape.num_words * 3 // 2, len(rows))
        records = []
        for row, length in zip(rows, lengths.tolist(), strict=True):
            values = (f"s{row % NUM_SKILLS}", "web", row, "en", row / 7, f"https://example.org/{row:09d}")
            values += ("2024-05-01", length, row % 3 == 0, "CC-BY-4.0")
            text = " ".join(words[random.integers(0, 4096, length)].tolist())
            records.append({"id": f"doc-{row:09d}", "text": text, **dict(zip(fields, values, strict=False))})
        lines = (orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)
        (folder / "jsonl" / f"{number}.jsonl").write_bytes(b"".join(lines))
        pq.write_table(pa.Table.from_pylist(records), folder / "parquet" / f"{number}.parquet", row_group_size=5000)


def turn(folder: Path) -> dict[str, float]:
    """Return the CPU seconds of each contender on a corpus, in this process. The commands are those of the checkout on the path."""
    from benchmarks import pipeline
    from skillshard import taggers
    from skillshard.corpus import Corpus
    from skillshard.taggers.ceiling import Ceiling
    from skillshard.taggers.tag import tag_partition

    seconds = {}
    for kind, bare in BARE.items():
        started_s = time.process_time()
        {"parse": pipeline.parse, "scan": pipeline.scan}[bare](folder)
        seconds[bare] = time.process_time() - started_s
        out = folder / "out"
        (out / "parts").mkdir(parents=True)
        corpus = Corpus.open(folder / kind.lower())
        tagger, reading = taggers.metadata("skill"), corpus.reading(16 << 20)
        started_s = time.process_time()
        for partition in corpus.partitions():
            hashes = str(out / f"{partition.index}.npy")
            tag_partition(partition, tagger, str(out), "stop", reading, Ceiling(), hashes)
        seconds[f"tag {kind}"] = time.process_time() - started_s
        shutil.rmtree(out)
    return seconds


def run(folder: Path, checkout: Path) -> dict[str, dict[str, float]]:
    """Return the result of `turn` for each shape, in a process of its own with the code of a checkout."""
    # This file runs by its path, because an older checkout lacks the file. The path then names the checkout for all imports.
    process = subprocess.run(
        [sys.executable, "-P", __file__, str(folder), "--turn"],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )
    result: dict[str, dict[str, float]] = json.loads(process.stdout)
    return result


def measure(folder: Path, num_rounds: int, checkouts: dict[str, Path]) -> dict[str, Any]:
    """Return the CPU seconds of each contender in each round, for each shape."""
    result: dict[str, Any] = {"load": [], "rounds": []}
    for name, shape in SHAPES.items():
        write_corpus(folder / name, shape, CORPUS_BYTES // shape.row_bytes)
    for _ in range(num_rounds):
        result["load"].append(os.getloadavg()[0])
        result["rounds"].append({when: run(folder, checkout) for when, checkout in checkouts.items()})
        sys.stderr.write(f"{json.dumps(result['rounds'][-1])}\n")
        # After each round, so that a run that is stopped keeps its finished rounds.
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    return result


def table(result: dict[str, Any]) -> str:
    """Return the ratios as a table of Markdown."""
    lines = [
        "| rows | code | parse / row | tag JSONL / parse | scan / row | tag Parquet / scan |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, shape in SHAPES.items():
        for when in result["rounds"][0]:
            turns = [each[when][name] for each in result["rounds"]]
            cells = []
            for kind, bare in BARE.items():
                bare_us = min(times[bare] for times in turns) / (CORPUS_BYTES // shape.row_bytes) * 1e6
                ratios = sorted(times[f"tag {kind}"] / times[bare] for times in turns)
                cells += [f"{bare_us:.2f} µs", f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"]
            lines.append(f"| {name} | {when} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="another checkout of this repository")
    parser.add_argument("--turn", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        turn(options.folder / next(iter(SHAPES)))  # warms the code, and is not reported
        sys.stdout.write(json.dumps({name: turn(options.folder / name) for name in SHAPES}))
        return
    checkouts = {"now": HERE} if options.before is None else {"before": options.before.absolute(), "now": HERE}
    work = options.folder.absolute() / "tag-shapes"
    result = measure(work, options.rounds, checkouts)
    shutil.rmtree(work)
    sys.stdout.write(table(result))


if __name__ == "__main__":
    main()
