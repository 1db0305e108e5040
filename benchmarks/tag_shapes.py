"""Measure the CPU time of `tag metadata` on rows of several shapes, against a bare parse of the lines and a bare scan of the tables.

    python -m benchmarks.tag_shapes FOLDER [--rounds 5] [--before CHECKOUT] [--workers]

The contenders of benchmarks/pipeline.py take turns, and each runs in a process of its own with one worker. The CPU time of a contender is the
time on the corpus less its median time on a corpus of 20 rows. `--before` adds the commands of another checkout of this repository to each
round. `--workers` adds the ratio of the elapsed times with one worker and with two. The results are written to
benchmarks/results/tag-shapes.json.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pipeline import NUM_SKILLS, TINY_ROWS

RESULTS = Path(__file__).parent / "results" / "tag-shapes.json"
HERE = Path(__file__).parent.parent
CORPUS_BYTES = 120_000_000


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


def run(name: str, folder: Path, checkout: Path, workers: int = 1) -> tuple[float, float]:
    """Return the CPU seconds and the elapsed seconds of a contender of benchmarks/pipeline.py."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    if name in BARE.values():
        command = [sys.executable, str(checkout / "benchmarks" / "pipeline.py"), "--contender", name, str(folder)]
    else:
        kind = name.removeprefix("tag ").lower()
        # The tiny corpus has several partitions too, because a single partition is read without a worker to start.
        size = "500B" if folder.name == "tiny" else "32MiB"
        command = [sys.executable, "-m", "skillshard", "tag", "metadata", str(folder / kind), "--field", "skill"]
        command += ["--out", str(out), "--workers", str(workers), "--partition-size", size]
    before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # The checkout of the command stands first on the path, in the workers too.
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )
    elapsed_s, after = time.perf_counter() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(out, ignore_errors=True)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, elapsed_s


def measure(folder: Path, num_rounds: int, checkouts: dict[str, Path], with_workers: bool) -> dict[str, Any]:
    """Return the CPU seconds of each contender in each round, for each shape."""
    contenders = [(name, HERE, name) for name in BARE.values()]
    contenders += [
        (f"tag {kind}", checkout, f"{when}: tag {kind}") for kind in BARE for when, checkout in checkouts.items()
    ]
    result: dict[str, Any] = {"load": [], "shapes": {name: [] for name in SHAPES}, "speedup": []}
    for name, shape in SHAPES.items():
        write_corpus(folder / name / "tiny", shape, TINY_ROWS)
        write_corpus(folder / name / "corpus", shape, CORPUS_BYTES // shape.row_bytes)
    for _ in range(num_rounds):
        result["load"].append(os.getloadavg()[0])
        for name in SHAPES:
            times = {}
            for contender, checkout, label in contenders:
                start_s, _ = run(contender, folder / name / "tiny", checkout)
                cpu_s, _ = run(contender, folder / name / "corpus", checkout)
                times[label] = {"cpu_s": cpu_s, "start_s": start_s}
            result["shapes"][name].append(times)
            sys.stderr.write(f"{name}: {json.dumps(times)}\n")
        if with_workers:
            place = folder / "1 kB, 4 fields" / "corpus"
            result["speedup"].append([run("tag JSONL", place, HERE, workers)[1] for workers in (1, 2)])
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    return result


def table(result: dict[str, Any]) -> str:
    """Return the ratios as a table of Markdown."""
    lines = ["| rows | command | aim | ratio to the bare reading (median, range) |", "|---|---|---:|---:|"]
    for shape, rounds in result["shapes"].items():
        start_s = {name: statistics.median(times[name]["start_s"] for times in rounds) for name in rounds[0]}
        for name in rounds[0]:
            if name in BARE.values():
                continue
            bare = BARE[name.rpartition(" ")[2]]
            ratios = [
                (times[name]["cpu_s"] - start_s[name]) / (times[bare]["cpu_s"] - start_s[bare]) for times in rounds
            ]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            lines.append(f"| {shape} | {name} | {3 if bare == 'parse' else 2} | {spread} |")
    if result["speedup"]:
        ratios = sorted(one / two for one, two in result["speedup"])
        lines.append(
            f"\nElapsed time, one worker / two: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="another checkout of this repository")
    parser.add_argument("--workers", action="store_true", help="measure the elapsed time with one worker and with two")
    options = parser.parse_args()
    checkouts = {"now": HERE} if options.before is None else {"before": options.before.absolute(), "now": HERE}
    work = options.folder.absolute() / "tag-shapes"
    result = measure(work, options.rounds, checkouts, options.workers)
    shutil.rmtree(work)
    sys.stdout.write(table(result))


if __name__ == "__main__":
    main()
