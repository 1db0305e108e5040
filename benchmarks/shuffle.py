"""Measure opens, bytes and CPU time of the shuffle of `shard` at 1, 4 and 16 times as many chunks, with and without merge levels.

    python -m benchmarks.shuffle FOLDER [--chunks 64] [--chunk-bytes 262144]

The chunks are small, and the cost of an open in the cost rule is smaller by the same factor, so the plan is the plan of a corpus with
chunks of 64 MiB. All stages run in a single process. An audit hook of Python counts the files under the scratch directory that are opened
for reading. Bytes are `rchar` and `wchar` of /proc/self/io, without memory-mapped indexes. The digests of all runs of a corpus are
compared.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import orjson

from skillshard import stages, storage, taggers
from skillshard.corpus import Corpus
from skillshard.execution import Backend, Record, Task
from skillshard.merge_levels import OPEN_BYTES, MergePlan, plan_merges
from skillshard.shards import plan, sort, tables, write
from skillshard.tags import Tags

FULL_CHUNK_BYTES = 64 << 20
TEXT_BYTES = 1000


class Counts:
    """The numbers of opens, of bytes and of CPU seconds since the start of the present stage."""

    opens = 0

    def __init__(self) -> None:
        sys.addaudithook(self._see)
        self.reset()

    def _see(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and "/.work/scratch/" in str(arguments[0]) and str(arguments[1] or "r").startswith("r"):
            self.opens += 1

    def _bytes(self) -> tuple[int, int]:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["rchar"]), int(fields["wchar"])

    def reset(self) -> None:
        self.opens, self.bytes, self.cpu_s = 0, self._bytes(), time.process_time()

    def passed(self) -> tuple[int, int, int, float]:
        num_read, num_written = self._bytes()
        return self.opens, num_read - self.bytes[0], num_written - self.bytes[1], time.process_time() - self.cpu_s


def corpus_of(folder: Path, num_bytes: int) -> Corpus:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    with (folder / "0.jsonl").open("wb") as file:
        for number in range(num_bytes // TEXT_BYTES):
            text = random.bytes(TEXT_BYTES // 2).hex()
            record = {"id": f"{number:x}", "text": text, "skill": f"s{number % 8}"}
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    return Corpus.open(folder)


def run(corpus: Corpus, tags: Tags, out: Path, planner: Callable[..., MergePlan], chunk_bytes: int) -> str:
    """Write the shards, print a line for each kind of stage, and return the digest of the shard set."""
    counts, sums, plans = Counts(), dict[str, np.ndarray](), []

    def planned(*numbers: int) -> MergePlan:
        plans.append(planner(*numbers))
        return plans[-1]

    def on_stage(name: str, _: int) -> Callable[[Task, Record], None]:
        counts.reset()

        def on_done(task: Task, record: Record) -> None:
            kind = name.partition(" (")[0]
            sums[kind] = sums.get(kind, 0) + np.array(counts.passed())
            counts.reset()

        return on_done

    stages.plan_merges = planned
    sort.SORT_BYTES, tables.TEXTS_PER_RANGE = chunk_bytes, 16 * chunk_bytes // TEXT_BYTES
    shards = write.write_shards(
        corpus, tags, out, shard_bytes=chunk_bytes, backend=Backend(workers=1), on_stage=on_stage
    )
    samples = plans[-1]
    fan_ins = "x".join(map(str, samples.fan_ins)) or "none"
    for name, (opens, num_read, num_written, cpu_s) in sums.items():
        sys.stdout.write(
            f"{samples.num_files:7,} {fan_ins:>8} {name:16} {opens:10,.0f} {num_read / 1e6:10,.0f} {num_written / 1e6:10,.0f} {cpu_s:8.2f}\n"
        )
    sys.stdout.flush()
    return shards.digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--chunk-bytes", type=int, default=256 << 10)
    options = parser.parse_args()
    open_bytes = OPEN_BYTES * options.chunk_bytes // FULL_CHUNK_BYTES
    planners = {
        "merged": partial(plan_merges, open_bytes=open_bytes),
        "plain": partial(plan_merges, open_bytes=0, max_fan_in=1 << 40),
    }
    storage.sync = lambda path: (
        None
    )  # waits for the disk are no CPU time, and thousands of tiny files would wait for long
    plan.GROUP_BYTES = 2 * options.chunk_bytes  # as many groups as chunks
    sys.stdout.write(
        f"{'chunks':>7} {'fan-ins':>8} {'stage':16} {'opens':>10} {'MB read':>10} {'MB written':>10} {'CPU s':>8}\n"
    )
    for factor in (1, 4, 16):
        folder = options.folder / "shuffle"
        corpus = corpus_of(folder / "corpus", factor * options.chunks * options.chunk_bytes)
        tags = taggers.tag_corpus(
            corpus,
            taggers.metadata("skill"),
            folder / "tags",
            partition_bytes=options.chunk_bytes,
            backend=Backend(workers=1),
            progress=False,
        )
        digests = {run(corpus, tags, folder / name, planner, options.chunk_bytes) for name, planner in planners.items()}
        assert len(digests) == 1, "the bytes depend on the merge levels"
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
